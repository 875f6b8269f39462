"""`gptkit schema`: the JSON schema of experiment files."""

from __future__ import annotations

import json


def schema() -> None:
    """Example:

      gptkit schema > experiments/experiment.schema.json

    Prints the JSON schema of experiment files, with the options of all installed plugins. An editor with TOML
    support uses it to check and complete a file whose first line is: #:schema ./experiment.schema.json
    """
    from gptkit.experiment.fields import json_schema

    print(json.dumps(json_schema(), indent=2))
