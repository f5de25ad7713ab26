"""The training core of the study and its helpers. A module imports only from layers below its own.

| layer | module        | holds                                                                 |
|-------|---------------|-----------------------------------------------------------------------|
| 0     | `errors`      | the wording of errors: offenders, valid choices, the way out          |
| 0     | `artifacts`   | where every file lives; atomic save; run records; content hashes      |
| 0     | `duplicates`  | which images are the same picture, exactly or nearly                  |
| 1     | `manifest`    | task cards; read, validate and write manifests; patient-level splits  |
| 1     | `backbones`   | the table of backbones; building one, with its weights checked        |
| 1     | `metrics`     | point metrics and their bootstrap intervals                           |
| 1     | `execute`     | one notebook, one set of parameters: papermill, made strict           |
| 1     | `phantoms`    | synthetic images and volumes with a known answer, as real files       |
| 2     | `layouts`     | folder layouts of the data sets -> manifest rows                      |
| 2     | `volumes`     | NIfTI volumes -> upright slices                                       |
| 2     | `probe`       | heads on embeddings: logistic regression, kNN, the paper's MLP        |
| 2     | `compare`     | complete runs -> summary tables, with intervals over patients         |
| 2     | `grid`        | a grid file, checked as a whole before anything runs                  |
| 2     | `plots`       | data frame -> figure; figure styles; export of figures and tables     |
| 3     | `images`      | decode, resize and pack images and slices into uint8 arrays           |
| 3     | `passport`    | the split passport: the numbers that all later ones rest on           |
| 4     | `preparation` | a folder as downloaded -> a manifest that a comparison can rest on    |
| 4     | `features`    | frozen embedding extraction and its cache                             |
| 5     | `finetune`    | the fine-tuning loop                                                  |
"""
