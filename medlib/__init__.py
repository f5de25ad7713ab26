"""The training core of the study and its helpers. A module imports only from layers below its own.

| layer | module        | holds                                                                 |
|-------|---------------|-----------------------------------------------------------------------|
| 0     | `errors`      | the wording of errors: offenders, valid choices, the way out          |
| 0     | `artifacts`   | where every file lives; atomic save; run records; content hashes      |
| 0     | `duplicates`  | which images are the same picture, exactly or nearly                  |
| 1     | `cards`       | task cards: what a task is, and how its data are read                 |
| 1     | `backbones`   | the table of backbones; building one, with its weights checked        |
| 1     | `metrics`     | point metrics and their bootstrap intervals                           |
| 1     | `execute`     | one notebook, one set of parameters: papermill, made strict           |
| 1     | `phantoms`    | synthetic images and volumes with a known answer, as real files       |
| 1     | `plots`       | the house style, its export, and the figures of a single run          |
| 2     | `manifest`    | read, validate and write manifests; patient-level splits              |
| 2     | `figures`     | the figures in which the study answers                                |
| 2     | `tables`      | tables as CSV, Markdown and LaTeX                                     |
| 2     | `diagnostics` | curves, confusion matrices and calibration, from predictions          |
| 2     | `volumes`     | NIfTI volumes -> upright slices                                       |
| 2     | `grid`        | a grid file, checked as a whole before anything runs                  |
| 3     | `compare`     | summary tables with intervals; paired tests, equivalence, ranks       |
| 3     | `report`      | one HTML page with all figures and tables of a grid                   |
| 3     | `layouts`     | folder layouts of the data sets -> manifest rows                      |
| 3     | `images`      | decode, resize and pack images and slices into uint8 arrays           |
| 3     | `passport`    | the split passport: the numbers that all later ones rest on           |
| 3     | `probe`       | heads on embeddings: logistic regression, kNN, the paper's MLP        |
| 4     | `preparation` | a folder as downloaded -> a manifest that a comparison can rest on    |
| 4     | `claims`      | the paper's claims as data, and the verdict on each                   |
| 4     | `study`       | a grid from one command: resumed, watched, and what failed            |
| 4     | `features`    | frozen embedding extraction and its cache                             |
| 5     | `finetune`    | the fine-tuning loop                                                  |
"""
