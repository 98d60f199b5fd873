"""The examples, one file each: `python -m examples` lists them, `... NAME` runs one."""

EXAMPLES = {"segment": "Chinese word segmentation: convolutions and a linear-chain CRF"}
