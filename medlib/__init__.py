"""The study's helpers in five packages. A package imports only from those below it.

| package | answers                               | holds                                       |
|---------|---------------------------------------|---------------------------------------------|
| `grid`  | who runs what, and where does it lie? | grid files, addresses, records, jobs, study |
| `show`  | how does it look?                     | style, names, figures, tables, the report   |
| `stats` | what do predictions say?              | bootstrap, summaries, differences, claims   |
| `data`  | which images, whose, how split?       | cards, layouts, manifests, packs, phantoms  |
| `core`  | arrays and labels in, predictions out | backbones, features, heads, fine-tuning     |

Below them: `errors` (their wording) and `files` (atomic writes, hashes, the environment's record).
"""
