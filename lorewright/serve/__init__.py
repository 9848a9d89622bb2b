"""The OpenAI protocol over a memory folder: each memory is a model, `auto` picks the right one.

Start with `server.serve`; `app` holds the paths, `backends` whoever generates the replies.
"""
