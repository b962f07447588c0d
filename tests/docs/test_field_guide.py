"""The field guide shows what the engine measured, of the faults that the engine has, each with its cure."""

import json

from docs.runs._cures import CURES
from docs.runs.field_guide import MEASURED
from parity.faults.catalogue import CATALOGUE

BY_NAME = {fault.name: fault for fault in CATALOGUE}


def test_every_fault_has_a_cure_and_every_cure_its_fault():
    assert set(CURES) == {fault.name for fault in CATALOGUE if fault.stage is not None}


def test_what_was_measured_is_what_the_catalogue_says_now():
    for row in json.loads(MEASURED.read_text()):
        fault = BY_NAME[row["name"]]
        assert (row["model"], row["about"], row["expected_stage"]) == (fault.model, fault.about, fault.stage), row[
            "name"
        ]
        assert row["found_stage"] == fault.stage, row["name"]
