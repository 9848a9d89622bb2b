"""Word lists of the synthetic world: plain data, no behaviour."""

# ruff: noqa: E501, SIM905 - lists of words are read as text

from __future__ import annotations

FIRST_NAMES = (
    "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karin Leo Mara Nils Olga Paul Rosa Simon "
    "Tara Uwe Vera Walter Yara Zeno Alice Brian Carol Diego Elena Frank Gloria Henry Irene James "
    "Julia Kevin Laura Mark Nina Oscar Pedro Quinn Rachel Samuel Teresa Victor Wendy Xavier Amir "
    "Bella Cyrus Dora Elias Fatima Gavin Hana Ivan Joan Kofi Lena Milo Nadia Omar Petra Ravi Sara "
    "Tomas Ursula Viktor Wanda Yusuf Zoe Jerry Patti Carla Daniel Jeffrey Francisco Christian Maria "
    "Robert Linda Michael Susan William Karen Thomas Nancy Joseph Betty George Helen Edward Sandra"
).split()

WORDS = (
    "amber anchor apple arch arrow autumn badge barley basin beacon birch blossom bridge bronze brook "
    "candle canyon cedar chalk cherry circle cliff clover cobalt comet copper coral cotton crane creek "
    "crown crystal dawn delta desert dove drift eagle echo elm ember falcon feather fern field flame "
    "flint forest fox frost garden garnet glacier glass grain granite grove gull hammer harbour harvest "
    "hazel heron hill hollow honey horizon island ivory ivy jade juniper kettle lagoon lantern larch "
    "lark laurel leaf lemon light lily linen lotus maple marble marsh meadow mint mirror mist moon moss "
    "mountain nectar needle north oak ocean olive onyx opal orbit orchard otter owl palm paper pearl "
    "pebble pepper pine plum pond poplar prairie quartz quarry quill rain raven reed ridge river robin "
    "rose ruby saffron sage sail salt sand sapphire shadow shell shore silver sky slate snow south "
    "spark spring spruce star stone storm summer swan thistle thorn thunder tide timber torch tulip "
    "valley velvet violet walnut water wave wheat willow wind winter wolf wren yarrow zenith"
).split()

KINDS = (
    "office desk team lab station school museum hotel harbour bridge library clinic farm mill printer "
    "pump engine server camp club festival choir ship train garden workshop factory bakery archive "
    "theatre tower course project policy contract product kitchen store depot studio warehouse bureau "
    "gallery market academy institute committee department unit gate hall shop plant press crew "
    "service programme rule line device robot cabin shelter port chapel park pool"
).split()

MODIFIERS = (
    "visitor badge travel backup night winter summer guest safety emergency main second spare annual "
    "daily weekly monthly repair support training test project staff parking lunch coffee kitchen "
    "garden door gate key lock power water heating network server printer paper mail postal delivery "
    "shipping return order invoice tax bank cash credit expense holiday leave sick remote field site "
    "north south east west upper lower old new early late short long public private internal external "
    "legal press media sales service quality data cloud audit fire first front back roof floor window "
    "table chair desk lamp cable sensor filter valve motor wheel brake fuel oil gas air sound light "
    "signal radio video photo music team group crew shift duty board council member partner client "
    "supplier vendor student teacher library archive record file form report plan budget stock sample "
    "medical dental travel insurance rescue weather harbour bridge tower ticket entry exit opening "
    "closing welcome farewell founding partner sister junior senior chief deputy"
).split()

ATTRIBUTES = (
    ("code", "code"),
    ("number", "code"),
    ("colour", "colour"),
    ("day", "weekday"),
    ("contact", "person"),
    ("room", "room"),
    ("owner", "person"),
    ("limit", "money"),
    ("fee", "money"),
    ("deadline", "date"),
    ("phone", "phone"),
    ("address", "email"),
    ("address", "street"),
    ("manager", "person"),
    ("hour", "time"),
    ("page", "url"),
    ("length", "measure"),
    ("weight", "mass"),
    ("material", "material"),
    ("supplier", "company"),
    ("town", "place"),
    ("password", "word"),
    ("budget", "money"),
    ("dish", "dish"),
    ("language", "language"),
    ("symbol", "animal"),
    ("flower", "plant"),
    ("instrument", "instrument"),
    ("period", "duration"),
    ("share", "percent"),
    ("date", "date"),
    ("time", "time"),
    ("officer", "person"),
    ("coordinator", "person"),
    ("name", "name"),
    ("count", "count"),
    ("distance", "measure"),
    ("price", "money"),
    ("line", "phone"),
    ("tree", "plant"),
    ("animal", "animal"),
    ("rate", "percent"),
    ("quota", "count"),
    ("place", "place"),
    ("partner", "company"),
    ("level", "count"),
    ("mentor", "person"),
    ("identifier", "digits"),
    ("label", "word"),
    ("street", "street"),
    ("drink", "dish"),
    ("metal", "material"),
)

COLOURS = (
    "red blue green yellow orange purple brown black white grey pink teal navy crimson beige turquoise "
    "maroon gold silver lilac"
).split()
MATERIALS = (
    "steel oak glass copper brass granite linen cotton wool leather rubber bronze marble clay cork "
    "aluminium bamboo concrete wax paper"
).split()
ANIMALS = (
    "otter fox heron owl badger stork falcon lynx beaver hare swan raven wolf bear seal crane goat "
    "turtle hedgehog dolphin"
).split()
PLANTS = (
    "lavender rosemary fern tulip ivy maple birch willow cedar daisy poppy sage thyme clover orchid "
    "lilac juniper aloe mint jasmine"
).split()
DISHES = (
    "lentil soup, plum cake, barley stew, apple tart, fish pie, onion bread, bean salad, rye bread, "
    "goat cheese, mint tea, ginger beer, pumpkin soup, rice pudding, lemon cake, oat biscuits, "
    "black coffee, green tea, cherry juice, potato soup, walnut pie"
).split(", ")
INSTRUMENTS = (
    "violin cello flute oboe trumpet harp piano drum guitar organ clarinet horn lute viola"
).split()
LANGUAGES = (
    "Danish Finnish Polish Greek Turkish Welsh Basque Czech Dutch French German Italian Spanish "
    "Swedish Latin Hindi Arabic Korean Irish Maltese"
).split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
UNITS = {
    "money": ("euros", "dollars", "crowns", "pounds"),
    "measure": ("metres", "kilometres", "miles", "feet"),
    "mass": ("kilograms", "tonnes", "grams", "pounds"),
    "duration": ("minutes", "hours", "days", "weeks", "months"),
}
FILLERS = (
    "Please read this page with care.",
    "Ask a colleague if anything is unclear.",
    "This section was checked last week.",
    "Everyone is welcome.",
    "More pages will follow.",
    "The details below replace the old ones.",
    "Keep a copy at hand.",
    "Thank you for your help.",
    "These notes are for new staff.",
    "Changes are announced by mail.",
    "Nothing else is needed.",
    "The list is kept short on purpose.",
)

RELATION_ROWS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "head",
        "person",
        ("{s} is led by {v}.", "The person in charge of {s} is {v}."),
        (
            "Who leads {s}?",
            "Who is in charge of {s}?",
            "By whom is {s} led?",
            "Who is the person leading {s}?",
        ),
    ),
    (
        "founder",
        "person",
        ("{s} was founded by {v}.", "{s} was started by {v}."),
        ("Who founded {s}?", "By whom was {s} founded?", "Who started {s}?"),
    ),
    (
        "owner",
        "person",
        ("{s} belongs to {v}.", "{s} is owned by {v}."),
        ("Who owns {s}?", "To whom does {s} belong?", "Whose is {s}?"),
    ),
    (
        "approver",
        "person",
        ("{s} is approved by {v}.", "{s} is signed off by {v}."),
        (
            "Who approves {s}?",
            "Who signs off {s}?",
            "By whom is {s} approved?",
            "Whose approval does {s} need?",
        ),
    ),
    (
        "cleaner",
        "person",
        ("{s} is cleaned by {v}.",),
        ("Who cleans {s}?", "By whom is {s} cleaned?", "Who keeps {s} clean?"),
    ),
    (
        "opening time",
        "time",
        ("{s} opens at {v}.", "The doors of {s} open at {v}."),
        ("When does {s} open?", "At what time does {s} open?", "How early does {s} open?"),
    ),
    (
        "closing time",
        "time",
        ("{s} closes at {v}.", "The doors of {s} close at {v}."),
        ("When does {s} close?", "At what time does {s} close?", "How late is {s} open?"),
    ),
    (
        "home town",
        "place",
        ("{s} is based in {v}.", "{s} has its home in {v}."),
        ("Where is {s} based?", "In which town is {s} based?", "Where can {s} be found?"),
    ),
    (
        "phone number",
        "phone",
        ("Call {s} on {v}.", "{s} can be reached on {v}."),
        (
            "How can I call {s}?",
            "On which number can {s} be reached?",
            "Which number do I dial for {s}?",
        ),
    ),
    (
        "email address",
        "email",
        ("Write to {s} at {v}.", "Mail for {s} goes to {v}."),
        ("Where do I write to {s}?", "Where does mail for {s} go?", "How do I send mail to {s}?"),
    ),
    (
        "founding date",
        "date",
        ("{s} was founded on {v}.", "{s} began on {v}."),
        ("When was {s} founded?", "On which date did {s} begin?", "Since when has {s} existed?"),
    ),
    (
        "end date",
        "date",
        ("{s} ends on {v}.", "The last day of {s} is {v}."),
        ("When does {s} end?", "What is the last day of {s}?", "Until when does {s} run?"),
    ),
    (
        "cost",
        "money",
        ("{s} costs {v}.", "For {s} one pays {v}."),
        ("How much does {s} cost?", "What does one pay for {s}?", "How expensive is {s}?"),
    ),
    (
        "length",
        "measure",
        ("{s} is {v} long.", "{s} measures {v}."),
        ("How long is {s}?", "How much does {s} measure?", "What distance does {s} measure?"),
    ),
    (
        "weight",
        "mass",
        ("{s} weighs {v}.", "For {s} the scales show {v}."),
        ("How much does {s} weigh?", "What do the scales show for {s}?", "How heavy is {s}?"),
    ),
    (
        "colour",
        "colour",
        ("{s} is painted {v}.", "The walls of {s} are {v}."),
        ("What colour is {s}?", "In which colour is {s} painted?", "How is {s} painted?"),
    ),
    (
        "material",
        "material",
        ("{s} is made of {v}.", "{s} is built from {v}."),
        ("What is {s} made of?", "From what is {s} built?", "Of which material is {s}?"),
    ),
    (
        "supplier",
        "company",
        ("{s} is supplied by {v}.", "{s} buys from {v}."),
        ("Who supplies {s}?", "Which company supplies {s}?", "From whom does {s} get its goods?"),
    ),
    (
        "meeting day",
        "weekday",
        ("{s} meets on {v}.", "People of {s} meet every {v}."),
        ("When does {s} meet?", "On which day does {s} meet?", "Which weekday is for {s}?"),
    ),
    (
        "access code",
        "code",
        ("{s} opens with the code {v}.", "To enter {s}, type {v}."),
        ("Which code opens {s}?", "What do I type to enter {s}?", "How do I get into {s}?"),
    ),
    (
        "room",
        "room",
        ("{s} is in room {v}.", "Find {s} in room {v}."),
        ("In which room is {s}?", "Where in the building is {s}?", "Which room holds {s}?"),
    ),
    (
        "language",
        "language",
        ("People at {s} speak {v}.", "{s} works in {v}."),
        (
            "Which language is spoken at {s}?",
            "In which language does {s} work?",
            "What do people at {s} speak?",
        ),
    ),
    (
        "size",
        "count",
        ("{s} counts {v} members.",),
        ("How many members does {s} have?", "How many members are in {s}?", "How big is {s}?"),
    ),
    (
        "speciality",
        "dish",
        ("{s} is known for {v}.", "{s} is famous for its {v}."),
        ("What is {s} known for?", "For what is {s} famous?", "What should one try at {s}?"),
    ),
    (
        "website",
        "url",
        ("{s} is online at {v}.", "Visit {s} at {v}."),
        (
            "Where is {s} online?",
            "At which page can one visit {s}?",
            "What is the web page of {s}?",
        ),
    ),
    (
        "duration",
        "duration",
        ("{s} takes {v}.", "{s} lasts {v}."),
        ("How long does {s} take?", "How long does {s} last?", "How much time does {s} need?"),
    ),
    (
        "mascot",
        "animal",
        ("The badge of {s} shows a {v}.", "{s} keeps a {v}."),
        (
            "What does the badge of {s} show?",
            "Which animal does {s} keep?",
            "What animal stands for {s}?",
        ),
    ),
)
