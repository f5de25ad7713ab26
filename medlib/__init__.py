"""The training core of the study and its helpers. A module imports only from layers below its own.

| layer | module      | holds                                                                   |
|-------|-------------|-------------------------------------------------------------------------|
| 0     | `manifest`  | task cards; read, validate and write manifests; patient-level splits    |
| 0     | `artifacts` | where every file lives; atomic save; run records; content hashes        |
| 0     | `backbones` | the table of backbones; building one, with its weights checked          |
| 0     | `metrics`   | point metrics and their bootstrap intervals                             |
| 0     | `execute`   | one notebook, one set of parameters: papermill, made strict             |
| 1     | `layouts`   | folder layouts of the data sets -> manifest rows                        |
| 1     | `images`    | decode, resize and pack images and NIfTI slices into uint8 arrays       |
| 1     | `phantoms`  | synthetic images and volumes with a known answer, as real files         |
| 1     | `probe`     | heads on embeddings: logistic regression, kNN, the paper's MLP          |
| 1     | `compare`   | runs -> summary tables, intervals over seeds, paired differences        |
| 2     | `features`  | frozen embedding extraction and its cache                               |
| 2     | `finetune`  | the fine-tuning loop                                                    |
| 3     | `plots`     | data frame -> figure; figure styles; export of figures and tables       |
"""
