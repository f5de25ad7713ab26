"""The study's helpers in six packages. A package imports only from those below it.

| package | answers                               | holds                                       |
|---------|---------------------------------------|---------------------------------------------|
| `grid`  | who runs what, and where does it lie? | grid files, addresses, records, jobs, study |
| `show`  | how does it look?                     | style, names, figures, tables, the report   |
| `stats` | what do predictions say?              | draws, intervals, effects, tests, claims    |
| `data`  | which images, whose, how split?       | cards, layouts, manifests, packs, phantoms  |
| `zoo`   | which weights, and from where?        | the hub, checkpoints, checks of rows        |
| `core`  | arrays and labels in, predictions out | backbones, features, heads, fine-tuning     |

Below them: `errors` (their wording), `files` (atomic writes, hashes) and `environment` (versions,
hardware and memory, for records). Above them: `predict`, which is called by its name.
`core` needs nothing else of medlib; `core/fast` holds what is there only for speed. Metrics are in
`stats`: the core needs only the AUROC and the log-loss by which it chooses.

Libraries that were considered and left. kornia: the augmentation is one affine grid, which a CUDA
graph must record. torchmetrics: it cannot take the weights of thousands of resamples. statsmodels
and scikit-posthocs: of them we would use Holm's correction and one quantile, which SciPy has.
filelock: a lock must end with its process, and jobs must see through the same file that their
controller has ended; `fcntl.flock` does both. pydantic checks cards and grid files, not the rows of
backbones: the core must run on machines that have torch and timm only. pandera: the checks of a
manifest need columns made for them and messages made from rows, so it saved no line of ours, and
took twice as long.
"""
