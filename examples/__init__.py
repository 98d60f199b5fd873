"""The examples, one file each: `python -m examples` lists them, `... NAME` runs one."""

EXAMPLES = {
    "segment": "Chinese word segmentation: convolutions and a linear-chain CRF",
    "classify": "praise or complaint? self-attention over characters",
    "answer": "reading comprehension: dilated gated convolutions",
    "title": "titles of articles: sequence to sequence with attention and a copy prior",
}
