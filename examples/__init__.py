"""The examples, one file each: `python -m examples` lists them, `... NAME` runs one."""

EXAMPLES = {
    "segment": "Chinese word segmentation: convolutions and a linear-chain CRF",
    "classify": "praise or complaint? self-attention over characters",
    "answer": "reading comprehension: dilated gated convolutions",
    "title": "titles of articles: sequence to sequence with attention and a copy prior",
    "spectra": "star, galaxy or quasar? a residual network over simulated spectra",
    "mixup": "few labels: SamplePairing, mixup, manifold mixup, and the penalty they imply",
    "custom": "custom layers, losses, callbacks: embeddings of digits never seen, by triplets",
    "gan": "digits from noise: a generator and a critic whose slope is bounded",
    "lipschitz": "how far is the next mistake? spectral norms, attacks, certified radii",
}
