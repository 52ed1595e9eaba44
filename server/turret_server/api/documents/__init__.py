"""Documents of requests, from the body to what the answer says of them.

body      bodies with documents, parsed      input   where documents are, and their bytes
use       what a chat request wants          reader  documents -> pages -> their text
prompt    pages -> prompts that fit          answer  what is said beside the answer
"""
