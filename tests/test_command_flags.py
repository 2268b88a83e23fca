"""Test that every flag of every command has a test that fails if the flag does nothing.

The commands themselves are asked for their flags: absl by module, argparse through parsers that are caught before they
parse. TESTED names the test that shows the effect of each flag. A flag that is missing there fails, and so does a test
that no longer exists. The tests of flags that no other file tests are here.
"""

import argparse
import importlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags
from absl.testing import flagsaver

import fvjax.experiment
import fvjax.main
import weights_convert.__main__ as convert
from fvjax import (
    chat,
    cli,
    compare,
    demo,
    doctor,
    evaluate,
    export,
    face_tasks,
    ijb,
    plan,
    pretrain,
    report,
    reproduce,
    search,
    verify,
)
from fvjax.config import base, benchmark
from fvjax.data import describe, prepare, rules, stores, synthetic
from fvjax.data.alignment import geometry
from fvjax.data.readers.recordio import shard_jobs
from fvjax.data.stores import shards
from fvjax.parallel import distributed
from fvjax.training import preemption
from launch import local
from tests.test_convert import TINY as CHECKPOINT
from tests.test_prepare import cfp, fails, lfw, put, run  # noqa: F401
from tests.test_recordio import write_people
from tests.test_tfds_source import IMAGE, dataset
from weights_convert.read import open_file

HERE, LABELS = "test_command_flags", "test_attribute_labels"
TESTED: dict[str, dict[str, str]] = {
    "fvjax.main": {
        "config": "test_main::test_mistakes_are_one_line",
        "workdir": f"{HERE}::test_main_runs_what_its_flags_say",
        "mode": f"{HERE}::test_main_runs_what_its_flags_say",
        "benchmark": f"{HERE}::test_benchmarks_are_added_to_those_of_the_config",
        "coordinator": f"{HERE}::test_main_runs_what_its_flags_say",
        "processes": f"{HERE}::test_main_runs_what_its_flags_say",
        "process": f"{HERE}::test_main_runs_what_its_flags_say",
        "profile": f"{HERE}::test_main_runs_what_its_flags_say",
        "show": f"{HERE}::test_main_runs_what_its_flags_say",
        "traceback": f"{HERE}::test_a_traceback_is_shown_where_it_is_asked_for",
    },
    "fvjax.chat": {
        "question": "test_chat_command::test_the_answer_is_the_models",
        "--model": "test_chat_command::test_the_answer_is_the_models",
        "--image": "test_chat_command::test_the_answer_is_the_models",
        "--json": "test_chat_command::test_the_answer_is_the_models",
        "--video": "test_media_model::test_the_command_shows_a_clip",
        **dict.fromkeys(
            ("--max-tokens", "--temperature", "--top-p", "--seed", "--system", "--template", "--max-tiles"),
            "test_chat_command::test_flags_reach_the_model",
        ),
        **dict.fromkeys(("--adapters", "--dtype"), "test_chat_command::test_adapters_and_dtype_reach_the_model"),
        **dict.fromkeys(("--folder", "--out"), "test_chat_command::test_every_picture_of_a_folder"),
    },
    "fvjax.plan": {
        "devices": "test_plan::test_the_command",
        "json": "test_plan::test_the_command",
        **dict.fromkeys(
            ("device-kind", "per-node", "network-gbytes", "decode-rate", "steps-per-epoch", "images"),
            f"{HERE}::test_a_plan_is_of_the_machine_that_flags_describe",
        ),
    },
    "fvjax.verify": {
        "a": "test_verify::test_scores_and_threshold_are_the_evaluations",
        "b": "test_verify::test_scores_and_threshold_are_the_evaluations",
        "--model": "test_verify::test_scores_and_threshold_are_the_evaluations",
        "--benchmark": "test_verify::test_what_people_read",
        "--threshold": "test_verify::test_what_people_read",
        "--json": "test_verify::test_as_a_command",
        "--face": "test_photographs::test_the_chosen_face_is_compared",
        "--save": "test_photographs::test_the_saved_picture_shows_faces_and_verdict",
        "--far": "test_own_models::test_another_far_has_the_threshold_of_the_scores",
        "--unsure": "test_own_models::test_between_two_thresholds_it_cannot_tell",
        **dict.fromkeys(("--channels", "--pixels"), "test_own_models::test_an_onnx_file_has_a_score_and_no_threshold"),
    },
    "fvjax.compare": {
        "runs": "test_compare::test_runs_that_differ_in_their_seed_are_one_model",
        "--benchmark": "test_compare::test_bad_input_is_one_line",
        **dict.fromkeys(("--figure", "--format"), "test_compare::test_other_formats_hold_the_same_cells"),
        "--dst": "test_compare::test_dst_gets_plots_table_and_json",
        **dict.fromkeys(("--bootstrap", "--seed"), "test_compare::test_resamples_are_chosen_by_flags"),
    },
    "fvjax.reproduce": {
        **dict.fromkeys(
            ("--rows", "--workdir", "--yes"),
            "test_reproduce::test_rows_run_and_are_not_repeated_and_a_failed_one_costs_the_others_nothing",
        ),
        "--scale": "test_reproduce::test_mistakes_are_one_line",
        "--seeds": "test_reproduce::test_the_table_has_the_mean_and_spread_over_seeds",
        "--plan": "test_reproduce::test_a_plan_starts_and_writes_nothing",
    },
    "fvjax.evaluate": {
        **dict.fromkeys(
            ("--embedder", "--benchmark", "--workdir"), "test_foreign::test_a_function_is_judged_by_the_same_protocol"
        ),
        **dict.fromkeys(
            ("--model", "--channels", "--pixels"),
            "test_foreign::test_an_onnx_file_is_evaluated_and_compared_with_a_function",
        ),
        **dict.fromkeys(
            ("--flip-sum", "--batch-size", "--bootstrap", "--name"), "test_foreign::test_flags_reach_the_evaluation"
        ),
    },
    "fvjax.report": {
        **dict.fromkeys(("runs", "--out"), "test_report::test_every_figure_of_the_results_is_a_cell"),
        **dict.fromkeys(("--bootstrap", "--hardest"), "test_report::test_flags_reach_the_figures"),
        "--pictures": "test_report::test_pictures_are_shown_on_request_from_the_store_at_hand",
        "--data": "test_report::test_a_store_that_has_moved_is_recognised_by_its_hash",
    },
    "fvjax.demo": dict.fromkeys(
        ("--model", "--benchmark", "--threshold", "--gallery", "--chat", "--port", "--max-mb"),
        "test_demo::test_flags_reach_the_page",
    ),
    "fvjax.doctor": {
        "--data": "test_doctor::test_the_command",
        "--json": "test_doctor::test_the_command",
        "--pictures": "test_doctor::test_the_command",
        **dict.fromkeys(("--model", "--benchmark", "--threshold", "--pairs"), "test_doctor::test_a_model_is_examined"),
    },
    "fvjax.search": {
        **dict.fromkeys(
            ("--gallery", "--probe", "--model", "--top", "--fpir", "--json"), "test_search::test_folders_of_people"
        ),
        "--drop-copies": "test_search::test_probes_that_are_in_the_gallery",
    },
    "fvjax.ijb": dict.fromkeys(("--data", "--model", "--unweighted", "--json"), "test_ijb::test_the_command"),
    "fvjax.export": {
        "--workdir": "test_export::test_adapters_of_a_run",
        "--dst": "test_export::test_adapters_of_a_run",
        "--merged": "test_export::test_merged_weights_of_a_run",
        "--layout": "test_internvl3::test_a_run_is_exported_in_either_layout",
        **dict.fromkeys(("--license", "--base-model"), "test_export::test_merged_weights_of_a_run"),
        "--push-to-hub": "test_model_card::test_without_yes_everything_is_shown_and_nothing_sent",
        "--yes": "test_model_card::test_with_yes_those_files_are_uploaded_to_a_private_repository",
    },
    "fvjax.pretrain": {
        "--dst": "test_pretrain::test_a_short_run_writes_a_tower_that_loads",
        **dict.fromkeys(
            ("--people", "--shots", "--epochs", "--lr", "--batch"),
            f"{HERE}::test_a_tower_is_pretrained_for_as_long_as_flags_say",
        ),
    },
    "fvjax.data.prepare folder": {
        "--src": "test_prepare::test_folder",
        "--dst": "test_prepare::test_folder",
        "--resize": "test_prepare::test_folder_resize",
        "--align": "test_align::test_folder",
        "--landmarks": "test_align::test_landmarks_align_without_a_detector",
        "--workers": f"{HERE}::test_photographs_are_aligned_by_as_many_processes",
        "--policy": "test_align::test_folder",
        "--exclude": "test_prepare::test_folder_exclude_and_limit",
        "--limit": "test_prepare::test_folder_exclude_and_limit",
        "--split": "test_tfds_source::test_what_is_meant_must_be_said",
        "--image-feature": "test_tfds_source::test_what_is_meant_must_be_said",
        "--identity-feature": "test_tfds_source::test_what_is_meant_must_be_said",
    },
    "fvjax.data.prepare recordio": {
        "--src": "test_recordio::test_training_and_validation_stores",
        "--dst": "test_recordio::test_training_and_validation_stores",
        "--resize": "test_recordio::test_other_sizes",
        "--top": "test_recordio::test_training_and_validation_stores",
        "--val": "test_recordio::test_training_and_validation_stores",
        "--seed": "test_recordio::test_training_and_validation_stores",
        "--workers": f"{HERE}::test_shards_are_written_by_as_many_processes",
    },
    "fvjax.data.prepare lfw": {
        "--src": "test_prepare::test_lfw",
        "--dst": "test_prepare::test_lfw",
        "--resize": f"{HERE}::test_benchmarks_are_resized_and_aligned",
        "--align": "test_align::test_fallback_and_any_number_of_workers",
        "--landmarks": f"{HERE}::test_benchmarks_are_resized_and_aligned",
        "--workers": f"{HERE}::test_photographs_are_aligned_by_as_many_processes",
        "--policy": "test_prepare::test_lfw_missing_and_broken_images",
        "--pairs": "test_prepare::test_lfw",
        "--download": "test_align::test_download_of_what_is_there_and_without_network",
    },
    "fvjax.data.prepare cfp": {
        "--src": "test_prepare::test_cfp",
        "--dst": "test_prepare::test_cfp",
        "--resize": f"{HERE}::test_benchmarks_are_resized_and_aligned",
        "--align": f"{HERE}::test_photographs_are_aligned_by_as_many_processes",
        "--landmarks": f"{HERE}::test_benchmarks_are_resized_and_aligned",
        "--workers": f"{HERE}::test_photographs_are_aligned_by_as_many_processes",
        "--policy": f"{HERE}::test_photographs_are_aligned_by_as_many_processes",
        "--protocol": "test_prepare::test_cfp",
    },
    "fvjax.data.prepare pairs": {
        **dict.fromkeys(("--src", "--dst", "--pairs", "--name"), "test_pair_list::test_the_store"),
        "--policy": "test_pair_list::test_missing_pictures",
        "--resize": "test_pair_list::test_sizes_and_photographs",
        **dict.fromkeys(("--align", "--workers"), "test_pair_list::test_flags_reach_the_conversion"),
        "--landmarks": "test_pair_list::test_sizes_and_photographs",
    },
    "fvjax.data.prepare bin": {
        "--src": "test_insightface_bin::test_the_store",
        "--dst": "test_insightface_bin::test_the_store",
        "--resize": "test_insightface_bin::test_mistakes",
        "--name": "test_insightface_bin::test_the_store",
        "--folds": "test_insightface_bin::test_the_store",
        "--policy": "test_insightface_bin::test_rejections_are_counted_and_located",
    },
    "fvjax.data.prepare ijb": {
        **dict.fromkeys(("--src", "--dst"), "test_ijb::test_the_store_has_the_pictures_aligned_by_their_points"),
        "--policy": "test_ijb::test_dropped_pictures_are_counted",
        "--workers": "test_ijb::test_pictures_are_aligned_by_as_many_processes",
    },
    "fvjax.data.prepare facexbench": {
        "--src": "test_facexbench_store::test_the_store_has_the_golden_questions",
        "--dst": "test_facexbench_store::test_the_store_has_the_golden_questions",
        "--setting": "test_facexbench_store::test_setting_and_layout",
        "--layout": "test_facexbench_store::test_setting_and_layout",
    },
    "fvjax.data.prepare conversations": {
        "--src": "test_conversations::test_fairfacegpt",
        "--dst": "test_conversations::test_fairfacegpt",
        "--images": "test_conversations::test_texts_need_no_folder_and_pictures_do",
        "--videos": "test_clips::test_clips_are_imported_and_broken_ones_counted",
        "--frames": "test_clips::test_clips_are_imported_and_broken_ones_counted",
        "--landmarks": "test_clips::test_points_are_imported_and_missing_ones_counted",
        "--detector": "test_clips::test_points_are_imported_and_missing_ones_counted",
        "--landmark-side": "test_clips::test_points_are_imported_and_missing_ones_counted",
        "--missing-landmarks": "test_clips::test_records_can_be_kept_without_points",
        "--broken-videos": "test_clips::test_a_broken_video_can_end_the_conversion",
        "--split": "test_conversations::test_split",
        "--val": "test_conversations::test_validation_has_all_conversations_of_its_pictures",
        "--seed": "test_conversations::test_the_choice_depends_on_the_seed_and_not_on_the_order",
    },
    "fvjax.data.prepare celeba": {
        **dict.fromkeys(("--src", "--dst", "--labels", "--partition", "--identities"), f"{LABELS}::test_celeba_store"),
        "--size": f"{LABELS}::test_celeba_store",
        "--margin": f"{LABELS}::test_a_margin_around_the_picture",
        "--align": f"{LABELS}::test_surroundings_of_the_face_that_a_detector_finds",
        "--share": f"{LABELS}::test_a_share_of_the_pictures",
        "--policy": f"{LABELS}::test_labels_of_pictures_that_are_not_there",
    },
    **{
        f"fvjax.data.prepare {name}": {
            **dict.fromkeys(("--src", "--dst", *its), f"{LABELS}::{test}"),
            **dict.fromkeys(
                ("--size", "--margin", "--share", "--policy", *(("--align",) if name != "expw" else ())),
                f"{LABELS}::test_options_of_every_data_set",
            ),
        }
        for name, its, test in (
            ("maad", ("--labels", "--val"), "test_rafdb_and_maad_stores"),
            ("rafdb", ("--labels", "--val"), "test_rafdb_and_maad_stores"),
            ("fairface", ("--labels", "--val", "--split", "--repair-ages"), "test_fairface_store"),
            ("utkface", (), "test_utkface_store"),
            ("expw", ("--labels",), "test_expw_crops_the_boxes"),
            (
                "attributes",
                ("--attribute-feature", "--image-feature", "--identity-feature"),
                "test_nested_features_of_a_tfds_dataset",
            ),
        )
    },
    "fvjax.data.rules check": {
        "--labels": "test_rules::test_the_command_prints_the_specifications_table",
        "--store": "test_rules::test_a_store",
        "--sets": "test_rules::test_a_store",
        **dict.fromkeys(
            ("--rules", "--max-share"), "test_rules::test_rules_of_common_sense_that_the_labels_contradict"
        ),
        **dict.fromkeys(("--tau", "--edges"), "test_rules::test_edges"),
    },
    "fvjax.data.describe labels": {
        **dict.fromkeys(("--src", "--labels", "--dst"), "test_describe::test_a_store_of_the_labels"),
        "--repair-ages": "test_describe::test_mistakes_of_the_labels_command",
        "--split": "test_describe::test_one_question_a_record",
        "--val": "test_describe::test_pictures_are_on_one_side_of_the_split",
        "--test": "test_describe::test_a_part_for_testing_has_one_question_a_record",
        "--seed": "test_describe::test_seeds_change_wordings",
        "--kinds": "test_describe::test_kinds_of_questions",
        "--single": "test_describe::test_one_question_a_record",
    },
    "fvjax.data.describe endpoint": {
        **dict.fromkeys(
            ("--src", "--labels", "--dst", "--url", "--model", "--max-tokens"),
            "test_describe_endpoint::test_what_is_sent_and_what_is_stored",
        ),
        "--repair-ages": "test_describe_endpoint::test_mangled_ages_are_repaired_only_when_asked",
        "--prompts": "test_describe_endpoint::test_own_prompts_are_asked",
        "--max-requests": "test_describe_endpoint::test_a_run_goes_on_where_the_limit_stopped_it",
        "--max-failures": "test_describe_endpoint::test_too_many_failures_in_a_row_stop_the_run",
        "--parallel": "test_describe_endpoint::test_several_requests_at_a_time",
        "--timeout": "test_describe_endpoint::test_a_slow_endpoint_is_not_waited_for",
    },
    "fvjax.data.describe procedural": {
        "--dst": "test_face_instruct::test_the_command",
        "--first": "test_face_instruct::test_the_command",
        "--identities": "test_face_instruct::test_the_command",
        "--images": "test_face_instruct::test_the_command",
        "--clips": "test_face_instruct::test_the_command",
        "--frames": "test_face_instruct::test_the_command",
        "--seed": "test_face_instruct::test_the_command",
        "--split": "test_face_instruct::test_the_command",
        "--tasks": "test_face_instruct::test_the_command",
        "--low-resolution": "test_face_instruct::test_the_command",
    },
    "fvjax.data.describe audit": {
        "--src": "test_describe::test_the_page_shows_samples_and_needs_nothing_else",
        "--images": "test_describe::test_samples_of_a_file_of_conversations",
        "--count": "test_describe::test_samples_are_a_random_choice",
        "--seed": "test_describe::test_samples_are_a_random_choice",
        "--out": "test_describe::test_the_page_shows_samples_and_needs_nothing_else",
    },
    "fvjax.data.describe audit-result": {
        "marks": "test_describe::test_the_rate_and_its_interval",
        "--audit": "test_describe::test_marks_of_another_audit_are_refused",
    },
    "fvjax.data.describe control": {
        "--src": "test_describe::test_the_control_has_the_texts_and_one_fixed_picture",
        "--dst": "test_describe::test_the_control_has_the_texts_and_one_fixed_picture",
    },
    "fvjax.face_tasks parse": {
        "--answers": "test_face_tasks_command::test_parse_and_score",
        "--out": "test_face_tasks_command::test_parse_and_score",
    },
    "fvjax.face_tasks score": {
        "--answers": "test_face_tasks_command::test_parse_and_score",
        "--parsed": "test_face_tasks_command::test_parse_and_score",
        "--out": "test_face_tasks_command::test_parse_and_score",
        "--seed": "test_face_tasks_command::test_parse_and_score",
    },
    "fvjax.face_tasks judge": {
        "--answers": "test_face_tasks_command::test_judge_by_file",
        "--store": "test_face_tasks_command::test_judge_by_file",
        "--backend": "test_face_tasks_command::test_judge_by_file",
        "--folder": "test_face_tasks_command::test_judge_by_file",
        "--repeats": "test_face_tasks_command::test_judge_by_file",
        "--seed": "test_face_tasks_command::test_judge_by_file",
        "--out": "test_face_tasks_command::test_judge_by_file",
        "--url": "test_face_tasks_command::test_judge_at_an_endpoint",
        "--model": "test_face_tasks_command::test_judge_at_an_endpoint",
        "--max-requests": "test_face_tasks_command::test_judge_at_an_endpoint",
    },
    "weights_convert": {
        "--src": "test_convert::test_command_line",
        "--dst": "test_convert::test_command_line",
        "--kind": "test_convert::test_command_line",
        "--revision": "test_hub::test_a_repository_at_its_current_commit_and_again_offline",
        "--inverse": f"{HERE}::test_weights_are_converted_back",
        "--layout": "test_internvl3::test_the_command",
        "--channels": "test_iresnet_file::test_the_command_converts_a_folder_that_errors_point_to",
    },
    "launch/local.py": {
        "--processes": "test_local::test_each_process_has_its_place_and_the_flags",
        "--devices": "test_local::test_each_process_has_its_place_and_the_flags",
        "--port": "test_local::test_each_process_has_its_place_and_the_flags",
        "flags": "test_local::test_each_process_has_its_place_and_the_flags",
        "--gpus": "test_local::test_gpus_are_dealt_out",
        "--restarts": "test_local::test_no_more_restarts_than_allowed",
        "--grace": "test_local::test_the_first_failure_is_the_exit_code_and_the_rest_is_killed",
    },
    "benchmarks/conversation_step.py": dict.fromkeys(
        (
            "--case",
            "--against",
            "--rounds",
            "--steps",
            "--batch",
            "--tokens",
            "--threads",
            "--precision",
            "--weights",
            "--json",
            "--child",
            "--adapters",
            "--device",
        ),
        "test_benchmarks::test_flags_of_the_conversation_step",
    ),
    "benchmarks/decode.py": {"--store": f"{HERE}::test_what_a_benchmark_measures"},
    "benchmarks/doctor_pipelines.py": {
        "--lfw": "test_doctor::test_the_table_of_pipelines",
        "--pairs": "test_doctor::test_the_table_of_pipelines",
    },
    "benchmarks/doctor_reference.py": {"stores": "test_doctor::test_the_reference_is_made_of_stores"},
    "benchmarks/flops.py": {
        "--pairs": f"{HERE}::test_pairs_whose_arithmetic_is_counted",
        "--store": f"{HERE}::test_pairs_whose_arithmetic_is_counted",
    },
    "benchmarks/generation.py": {
        "--model": f"{HERE}::test_programs_that_generate",
        "--prompt": f"{HERE}::test_programs_that_generate",
        "--tokens": f"{HERE}::test_programs_that_generate",
        "--rounds": f"{HERE}::test_programs_that_generate",
        "--threads": f"{HERE}::test_programs_that_generate",
    },
    "benchmarks/growth.py": {"--law": f"{HERE}::test_laws_that_are_measured"},
    "benchmarks/input.py": {
        "--store": f"{HERE}::test_variants_that_are_measured",
        "--batch": f"{HERE}::test_variants_that_are_measured",
        "--batches": f"{HERE}::test_variants_that_are_measured",
        "--rounds": f"{HERE}::test_variants_that_are_measured",
        "--one": f"{HERE}::test_variants_that_are_measured",
    },
    "benchmarks/photographs.py": dict.fromkeys(
        ("--model", "--photographs", "--crops", "--pairs"), "test_photographs::test_photographs_against_crops"
    ),
    "benchmarks/plan.py": {
        "--cases": f"{HERE}::test_cases_that_are_planned",
        "--remat": f"{HERE}::test_cases_that_are_planned",
        "--one": f"{HERE}::test_cases_that_are_planned",
    },
    "benchmarks/recordio.py": {
        "--records": f"{HERE}::test_records_that_are_converted",
        "--workers": f"{HERE}::test_records_that_are_converted",
        "--dir": f"{HERE}::test_records_that_are_converted",
    },
}
# Benchmarks for the developers' ledger, which take many hours. Each of their results records the command.
NOT_TESTED = {"benchmarks/ablations.py", "benchmarks/evaluation.py", "benchmarks/kills.py", "benchmarks/step_time.py"}


class Caught(Exception):
    """Raised with a parser before it parses."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def caught(call: Callable[[], Any]) -> argparse.ArgumentParser:
    def stop(parser, *_):
        raise Caught(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Caught) as found:
            call()
    return found.value.parser


def by_command(name: str, parser: argparse.ArgumentParser) -> dict[str, set[str]]:
    """Return the flags and arguments of a parser, and of each of its sub-commands."""
    subs = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if subs:
        return {k: v for sub, its in subs[0].choices.items() for k, v in by_command(f"{name} {sub}", its).items()}
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    return {name: {next((o for o in a.option_strings if o.startswith("--")), a.dest) for a in actions}}


def all_flags() -> dict[str, set[str]]:
    defined = flags.FLAGS.flags_by_module_dict()
    found = {name: {flag.name for flag in defined[name]} for name in ("fvjax.main", "fvjax.plan")}
    found["fvjax.main"] |= {flag.name for flag in defined["fvjax.cli"]}  # fvjax.plan has these flags too
    commands = {
        "fvjax.chat": lambda: chat.main([]),
        "fvjax.verify": lambda: verify.main([]),
        "fvjax.compare": lambda: compare.main([]),
        "fvjax.reproduce": lambda: reproduce.main([]),
        "fvjax.evaluate": lambda: evaluate.main([]),
        "fvjax.demo": lambda: demo.main([]),
        "fvjax.doctor": lambda: doctor.main([]),
        "fvjax.search": lambda: search.main([]),
        "fvjax.ijb": lambda: ijb.main([]),
        "fvjax.export": lambda: export.main([]),
        "fvjax.report": lambda: report.main([]),
        "fvjax.pretrain": pretrain.main,
        "fvjax.data.prepare": lambda: prepare.main([]),
        "fvjax.data.describe": lambda: describe.main([]),
        "fvjax.data.rules": lambda: rules.main([]),
        "fvjax.face_tasks": lambda: face_tasks.main([]),
        "weights_convert": convert.main,
        "launch/local.py": lambda: local.run([], []),
    }
    for file in sorted(Path("benchmarks").glob("*.py")):
        if '__name__ == "__main__"' in file.read_text():
            commands[str(file)] = importlib.import_module(f"benchmarks.{file.stem}").main
    for name, call in commands.items():
        found |= by_command(name, caught(call))
    return found


def test_every_flag_has_a_test_of_its_effect():
    found = all_flags()
    assert set(found) >= NOT_TESTED
    tested = {name: set(its) for name, its in TESTED.items()}
    assert {name: its for name, its in found.items() if name not in NOT_TESTED} == tested


def test_every_command_is_known():
    """Every program that reads flags is a known command."""
    sources = [*Path("fvjax").rglob("*.py"), *Path("weights_convert").glob("*.py"), *Path("launch").glob("*.py")]
    programs = {str(file) for file in sources if '__name__ == "__main__"' in file.read_text()}
    named = {f"{name.split(' ')[0].replace('.', '/')}.py" for name in TESTED if name.startswith("fvjax.")}
    # launch/stage.py reads the flags of fvjax.main, and fvjax/__main__.py runs the other commands (test_commands.py)
    others = {"weights_convert/__main__.py", "launch/local.py", "launch/stage.py", "fvjax/__main__.py"}
    assert programs == named | others


@pytest.mark.parametrize("test", sorted({test for its in TESTED.values() for test in its.values()}))
def test_the_tests_named_are_there(test):
    file, name = test.split("::")
    assert f"\ndef {name}(" in Path(f"tests/{file}.py").read_text()


# launch/slurm.sh has no flags of its own. Option for Slurm's programs -> the test that checks it
SLURM = {
    **dict.fromkeys(("--ntasks", "--ntasks-per-node"), "test_one_process_for_each_gpu_of_a_job"),
    **dict.fromkeys(("--cpu-bind", "--overcommit"), "test_one_process_for_each_gpu_of_a_job"),
    **dict.fromkeys(("--kill-on-bad-exit", "--wait"), "test_only_saved_runs_are_queued_again"),
    **dict.fromkeys(("--config", "--workdir"), "test_one_process_for_each_gpu_of_a_job"),
    "SLURM_JOB_ID": "test_sizes_go_to_sbatch_and_settings_to_main",
    "SLURM_NNODES": "test_one_process_for_each_gpu_of_a_job",
    "SLURM_GPUS_ON_NODE": "test_one_process_for_each_gpu_of_a_job",
    "SLURM_CPUS_ON_NODE": "test_one_process_for_each_gpu_of_a_job",
    "SLURM_TMPDIR": "test_main_reads_the_copies",
}


def test_every_option_of_the_slurm_script_has_a_test():
    lines = [line for line in Path("launch/slurm.sh").read_text().splitlines() if not line.startswith("#")]
    code = "\n".join(re.sub(r'(echo|fail) ".*', "", line) for line in lines)
    assert set(re.findall(r"(?<![\w$])--[a-z-]+|\bSLURM_[A-Z_]+", code)) == set(SLURM)
    tests = Path("tests/test_launch.py").read_text()
    assert all(f"\ndef {name}(" in tests for name in SLURM.values())


# ---- fvjax.main ------------------------------------------------------------------------------------------------------


@pytest.fixture
def called(monkeypatch):
    """Return a function that runs `fvjax.main.main` with some flags and returns what its parts receive.

    Nothing is trained.
    """

    def call(**given: Any) -> dict[str, Any]:
        told: dict[str, Any] = {}
        config = given.pop("config", None) or base()
        config.name = "x"

        def run(one, workdir, *, train, request, profile):
            told.update(workdir=str(workdir), train=train, profile=profile, show=one.log.show)
            return {}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fvjax.experiment, "run", run)
            patch.setattr(distributed, "start", lambda place, _: told.update(place=tuple(place)))
            patch.setattr(preemption.Request, "listen", lambda _: None)
            if "fails" in given:
                error = given.pop("fails")
                patch.setattr(fvjax.experiment, "run", lambda *_, **__: (_ for _ in ()).throw(error))
            patch.setattr(cli, "CONFIG", type("Flag", (), {"value": config}))
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            with flagsaver.flagsaver(**given):
                fvjax.main.main(["main"])
        return told

    return call


def test_main_runs_what_its_flags_say(called, tmp_path):
    alone = {
        "workdir": str(Path("runs/x").absolute()),
        "train": True,
        "profile": 0,
        "show": 0,
        "place": (1, None, None),
    }
    assert called() == alone
    assert called(workdir=str(tmp_path / "w")) == alone | {"workdir": str(tmp_path / "w")}
    assert called(mode="eval") == alone | {"train": False}
    assert called(profile=3) == alone | {"profile": 3}
    assert called(show=2) == alone | {"show": 2}
    several = {"coordinator": "there:29500", "processes": 4, "process": 2}
    assert called(**several) == alone | {"place": (4, "there:29500", 2)}
    for flag in several:
        with pytest.raises(SystemExit, match="2"):
            called(**{**several, flag: None})


def test_benchmarks_are_added_to_those_of_the_config(called, tmp_path, capsys):
    for name in ("one", "two"):
        synthetic.write(tmp_path / name, range(20), 2, 0, split="test", pairs=20)
    config = base()
    config.eval.benchmarks.lfw = benchmark(str(tmp_path / "two"), "synthetic")
    called(config=config, benchmark=[str(tmp_path / "one")])
    added = {name: (each.store, each.pairs) for name, each in config.eval.benchmarks.items()}
    stores = {"lfw": "two", "synthetic": "one"}
    assert added == {name: (str(tmp_path / store), "synthetic") for name, store in stores.items()}
    called(config=config, benchmark=[str(tmp_path / "one")])  # once more is no other benchmark
    with pytest.raises(SystemExit, match="2"):
        called(config=config, benchmark=[str(tmp_path / "two")])
    assert f"config.eval.benchmarks has another synthetic, of {tmp_path / 'one'}" in capsys.readouterr().err


def test_a_traceback_is_shown_where_it_is_asked_for(called, capsys):
    with pytest.raises(SystemExit, match="2"):
        called(fails=ValueError("a mistake"))
    assert capsys.readouterr().err == "fvjax: error: a mistake\n"
    with pytest.raises(ValueError, match="a mistake"):
        called(fails=ValueError("a mistake"), traceback=True)


# ---- fvjax.plan ------------------------------------------------------------------------------------------------------


def test_a_plan_is_of_the_machine_that_flags_describe(monkeypatch, capsys):
    """Each resource's minimum time follows from the flags that describe it; the amount of computation is unchanged."""
    found = {"devices": 8, "mesh": {"data": 8}, "images": 64, "parameters": 1, "trained": 1, "remat": "none"}
    found |= {"bytes": {"kept": 100 * 2**30, "working set": 1}, "model_flops": 1e15, "device_flops": 989e12}
    across = {"kind": "all-gather", "size": 8_000_000, "group": tuple(range(8)), "times": 1, "sent": 1}
    found |= {"bytes_moved": 4.8e12, "collectives": [across]}
    monkeypatch.setattr(plan, "plan", lambda *_: json.loads(json.dumps(found)) | {"collectives": [across]})
    config = base()
    config.epochs, config.batch_size, config.dtype, config.data.workers = 3, 64, "bfloat16", 1

    def planned(**given) -> dict[str, Any]:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        with flagsaver.flagsaver(**{name.replace("_", "-"): value for name, value in given.items()}):
            (one,) = plan.run(config, [8])
        text = capsys.readouterr().out
        steps = re.search(r"steps an epoch, at most +│ +([\d,]+)", text)
        return {**one["bounds"], "verdict": one["verdict"], "kind": one["device_kind"], "steps": steps and steps[1]}

    plain = planned()
    assert (plain["compute"], plain["kind"], plain["steps"]) == (1, "h100", None)
    other = planned(device_kind="a100-80gb")
    assert other["compute"] == pytest.approx(989 / 312)
    assert other["memory bandwidth"] / plain["memory bandwidth"] == pytest.approx(3.35 / 2.039)
    assert other["NVLink"] / plain["NVLink"] == pytest.approx(450 / 300)
    assert planned(device_kind="h200")["verdict"] == "fits"
    assert plain["verdict"].startswith("does not fit")
    slower = planned(network_gbytes=25.0)
    assert slower["network"] / plain["network"] == pytest.approx(2)
    assert {k: v for k, v in slower.items() if k != "network"} == {k: v for k, v in plain.items() if k != "network"}
    assert planned(decode_rate=1500.0)["input"] / plain["input"] == pytest.approx(4)
    whole = planned(per_node=8)
    assert whole["network"] == 0 < plain["network"], "one node has no network in between"
    assert whole["input"] / plain["input"] == pytest.approx(2), "nor two nodes' workers"
    assert planned(steps_per_epoch=1234)["steps"] == "1,234"
    assert planned(images=6500)["steps"] == "101"


# ---- fvjax.pretrain --------------------------------------------------------------------------------------------------


def test_a_tower_is_pretrained_for_as_long_as_flags_say(monkeypatch, tmp_path):
    class Stop(Exception):
        pass

    def drawn(people: int, shots: int) -> list[np.ndarray]:
        told.append((people, shots))
        rng, n = np.random.default_rng(0), people * shots
        return [rng.integers(0, 256, (n, size, size, 3), np.uint8) for size in (1, 56)] + [rng.random((n, 3))]

    def schedule(start, peak, warm, steps):
        told.append((start, peak, warm, steps))
        raise Stop

    def run(*given: str) -> list[tuple]:
        told.clear()
        monkeypatch.setattr("sys.argv", ["pretrain", f"--dst={tmp_path / 'x'}", *given])
        with pytest.raises(Stop):
            pretrain.main()
        return told.copy()

    told: list[tuple] = []
    tower = {"params": {"blocks": {"ls1": np.zeros(1), "ls2": np.zeros(1)}}}
    monkeypatch.setattr(pretrain.encoder, "build", lambda *_: SimpleNamespace(init=lambda _: tower))
    monkeypatch.setattr(pretrain, "generate", drawn)
    monkeypatch.setattr(pretrain.optax, "warmup_cosine_decay_schedule", schedule)
    few = ["--people=40", "--shots=3", "--epochs=4", "--batch=10", "--lr=0.5"]  # two people remain for the measurement
    assert run(*few) == [(40, 3), (0.0, 0.5, 4 * 11 // 20, 4 * 11)]
    assert run(*few, "--people=60")[0] == (60, 3)
    assert run(*few, "--shots=2") == [(40, 2), (0.0, 0.5, 1, 4 * 7)]
    assert run(*few, "--epochs=5")[1] == (0.0, 0.5, 2, 55)
    assert run(*few, "--batch=114")[1][3] == 4
    assert run(*few, "--lr=0.25")[1][1] == 0.25


# ---- fvjax.data.prepare ----------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch):
    """Return a function that runs prepare, whose sub-commands only record their arguments, and returns these."""
    found: dict[str, Any] = {}

    def one(name):
        return lambda src, dst, **options: found.update(options, name=name, src=src, dst=dst)

    for name in ("folder", "lfw", "cfp", "recordio"):
        monkeypatch.setattr(prepare, name, one(name))
    monkeypatch.setattr(prepare, "summary", lambda _: "")

    def call(*args: str) -> dict[str, Any]:
        found.clear()
        assert prepare.main(args) == 0
        return found.copy()

    return call


NEEDS = {"folder": [], "lfw": ["--pairs=p"], "cfp": ["--protocol=p"]}


@pytest.mark.parametrize("command", NEEDS)
def test_photographs_are_aligned_by_as_many_processes(told, command, monkeypatch, tmp_path):
    """The results do not depend on the number of processes (tests/test_align.py)."""
    common = [command, "--src=s", "--dst=d", *NEEDS[command]]
    points = tmp_path / "points.tsv"
    points.write_text("a.jpg\t" + "\t".join("0123456789") + "\n")
    assert told(*common)["aligner"] is None
    for workers in (1, 3):
        given = told(*common, f"--landmarks={points}", f"--workers={workers}")
        assert given["aligner"].workers == workers
    default = "drop" if command == "folder" else "fail"
    for policy in ("fail", "drop", "fallback"):
        given = told(*common, f"--landmarks={points}", f"--policy={policy}")
        assert (given["policy"], given["aligner"].policy) == (policy, policy)
    assert told(*common)["policy"] == default
    assert told(*common, "--align")["aligner"].name == "mtcnn"


def with_landmarks(folder: Path, files: list[str], file: Path) -> str:
    """Return a flag with the faces' points, such that a 224-pixel crop is scaled to half its size."""
    points = "\t".join(str(2 * x + 0.5) for x in geometry.TEMPLATE.ravel())
    file.write_text("".join(f"{name}\t{points}\n" for name in files))
    return f"--landmarks={file}"


@pytest.mark.parametrize("command", ["lfw", "cfp"])
def test_benchmarks_are_resized_and_aligned(request, command, tmp_path, capsys):
    """Both protocols accept all flags about their images."""
    given = request.getfixturevalue(command)
    files = sorted(str(path.relative_to(tmp_path / command)) for path in (tmp_path / command).rglob("*.jpg"))
    for number, name in enumerate(files):
        put(tmp_path / command / name, number, 224)
    (tmp_path / "out").mkdir()
    fails(capsys, tmp_path / "out/s", "224x224, expected 112x112; align it, or prepare with --resize", *given)
    assert run(capsys, *given, f"--dst={tmp_path / 'resized'}", "--resize")[0] == 0
    landmarks = with_landmarks(tmp_path / command, files[1:], tmp_path / "points.tsv")
    assert run(capsys, *given, f"--dst={tmp_path / 'aligned'}", landmarks, "--policy=fallback", "--workers=1")[0] == 0
    resized, aligned = (stores.Store(tmp_path / name, "test") for name in ("resized", "aligned"))
    assert "alignment" not in resized.manifest
    assert aligned.manifest["alignment"].items() >= {"no_points": 1, "aligned": len(aligned) - 1}.items()
    difference = np.abs(resized.images(range(len(resized))).astype(int) - aligned.images(range(len(aligned)))).mean(
        (1, 2, 3)
    )
    assert difference[0] > 2 * difference[1:].max(), "that one's middle was taken"
    benchmarks = aligned.manifest["benchmarks"].values()
    assert {each["policy"] for each in benchmarks} == {"fallback"}
    assert {each["failure_to_acquire"] for each in benchmarks} >= {1}
    fails(capsys, tmp_path / "out/s", f"{files[0]}: no points", *given, landmarks, "--policy=fail", "--workers=1")


def test_a_tfds_dataset_takes_the_flags_about_its_images(tmp_path, capsys):
    put(tmp_path / "0.jpg", 0, 224)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:300])
    rows = [{"image": tmp_path / f"{i}.jpg", "who": "Ann"} for i in range(2)]
    src = dataset(tmp_path / "d", {"image": IMAGE, "who": tfds.features.Text()}, rows)
    (tmp_path / "out").mkdir()
    fails(capsys, tmp_path / "out/s", "224x224, expected 112x112", "folder", src)
    fails(capsys, tmp_path / "out/s", "train#1: cannot be read", "folder", src, "--resize", "--policy=fail")
    assert run(capsys, "folder", src, f"--dst={tmp_path / 'out/s'}", "--resize")[0] == 0
    assert stores.Store(tmp_path / "out/s").images([0]).shape == (1, 112, 112, 3)


def test_shards_are_written_by_as_many_processes(monkeypatch, tmp_path, capsys):
    """The results do not depend on the number of processes (tests/test_recordio.py)."""
    started = []

    class Pool:
        def __init__(self, workers, *_):
            started.append(workers)
            raise OSError("no pool today")

    write_people(tmp_path / "src")
    monkeypatch.setattr(shard_jobs, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(shards, "SHARD_RECORDS", 4)  # three shards, and one to validate
    for workers, processes in ((2, 2), (3, 3), (9, 4)):
        args = [f"--src={tmp_path / 'src'}", f"--dst={tmp_path / str(workers)}", f"--workers={workers}"]
        assert prepare.main(["recordio", *args]) == 2
        assert "no pool today" in capsys.readouterr().err
        assert started.pop() == processes


# ---- weights_convert -------------------------------------------------------------------------------------------------


def test_weights_are_converted_back(tmp_path, monkeypatch, capsys):
    def run(*args: str) -> None:
        monkeypatch.setattr("sys.argv", ["weights_convert", *args])
        assert convert.main() == 0, capsys.readouterr().err

    run(f"--src={CHECKPOINT}", f"--dst={tmp_path / 'ours'}", "--kind=vlm")
    run(f"--src={tmp_path / 'ours'}", f"--dst={tmp_path / 'back'}", "--kind=vlm", "--inverse")
    names = [set(convert_names(folder)) for folder in (CHECKPOINT, tmp_path / "ours", tmp_path / "back")]
    assert names[2] <= names[0], "the reference's own adapters are left out"
    assert not names[1] & names[0]


def convert_names(folder: Path) -> list[str]:
    return [name for file in Path(folder).glob("*.safetensors") for name in open_file(file)]


# ---- benchmarks: what their flags ask for; the measurement itself is replaced ----------------------------------------


@pytest.fixture
def programs(monkeypatch):
    """Record the commands that a benchmark starts, and return its output."""

    def run(module, *args: str, **said: Any) -> list[list[str]]:
        commands: list[list[str]] = []

        def start(command, **_):
            commands.append(command[2:])
            return subprocess.CompletedProcess(command, 0, stdout=json.dumps(said), stderr="")

        monkeypatch.setattr("sys.argv", [module.__name__, *args])
        monkeypatch.setattr(subprocess, "run", start)
        module.main()
        return commands

    return run


def test_variants_that_are_measured(programs, monkeypatch, capsys):
    module = importlib.import_module("benchmarks.input")
    monkeypatch.setattr(synthetic, "write", lambda *given, **_: drawn.append(given))
    drawn: list = []
    commands = programs(module, "--batch=12", "--batches=34", "--rounds=2", "--store=there", rate=1.0, first=1.0)
    sizes = ["--batch=12", "--batches=34", "--store=there"]
    assert commands == [[*sizes, f"--one={name}"] for _ in range(2) for name in module.VARIANTS]
    assert drawn == []
    commands = programs(module, "--batch=12", "--rounds=1", rate=1.0, first=1.0)
    assert drawn[0][1] == range(12), "without a store one is drawn that a batch can be of"
    assert commands[0][2] == f"--store={drawn[0][0]}"
    monkeypatch.setattr(module, "one", lambda *given: given)
    capsys.readouterr()
    assert programs(module, "--store=there", "--batch=5", "--batches=6", "--one=cached in memory") == []
    assert json.loads(capsys.readouterr().out) == ["there", 5, 6, 0, "host", 1]


def test_programs_that_generate(monkeypatch, capsys):
    """The programs' own speed does not matter here: they take turns and must agree about the tokens."""
    module = importlib.import_module("benchmarks.generation")
    made, turns, cores = [], [], []
    generated = {"ours": 7, "theirs": 7}

    def program(name):
        def make(path, ids, *threads):
            made.append((name, path, ids.shape, *threads))
            return lambda count: turns.append((name, count)) or [generated[name]] * count

        return make

    monkeypatch.setattr(module, "fvjax_generator", program("ours"))
    monkeypatch.setattr(module, "transformers_generator", program("theirs"))
    monkeypatch.setattr(module.os, "sched_setaffinity", lambda _, allowed: cores.append(len(allowed)))
    flags = ["--model=there", "--prompt=5", "--tokens=9", "--rounds=2", "--threads=1"]
    monkeypatch.setattr("sys.argv", ["generation.py", *flags])
    module.main()
    assert made == [("ours", "there", (1, 5)), ("theirs", "there", (1, 5), 1)]
    assert cores == [1]
    warm_up, a_round = [(name, count) for count in (9, 1) for name in ("ours", "theirs")], [("ours", 1), ("ours", 9)]
    a_round += [("theirs", count) for _, count in a_round]
    assert turns == warm_up + 2 * a_round
    assert "9 tokens after 5: the same from both programs" in capsys.readouterr().out
    generated["theirs"] = 8
    module.main()
    assert "9 tokens after 5: DIFFERENT from both programs" in capsys.readouterr().out


def test_cases_that_are_planned(programs, monkeypatch, capsys):
    module = importlib.import_module("benchmarks.plan")
    case, other = list(module.CASES)[:2]
    commands = programs(module, f"--cases={other},{case}", "--remat=dots", least=1, most=1, xla=1)
    assert commands == [[f"--cases={each}", "--remat=dots", "--one"] for each in (other, case)]
    assert [c[0] for c in programs(module, least=1, most=1, xla=1)] == [f"--cases={each}" for each in module.CASES]
    monkeypatch.setattr(module, "one", lambda *given: given)
    capsys.readouterr()
    assert programs(module, f"--cases={case}", "--remat=full", "--one") == []
    assert json.loads(capsys.readouterr().out) == [case, "full"]


def test_records_that_are_converted(monkeypatch, tmp_path):
    module = importlib.import_module("benchmarks.recordio")
    told: dict[str, Any] = {}

    class Started(Exception):
        pass

    def start(command, **_):
        told["command"] = command[4:]
        raise Started

    monkeypatch.setattr(module, "write", lambda rec, records: told.update(rec=rec, records=records) or 1.0)
    monkeypatch.setattr(module.subprocess, "Popen", start)
    monkeypatch.setattr("sys.argv", ["recordio", "--records=7", "--workers=5", f"--dir={tmp_path}"])
    with pytest.raises(Started):
        module.main()
    assert (told["records"], told["rec"].parent.parent) == (7, tmp_path)
    folder = told["rec"].parent
    assert told["command"] == [f"--src={folder}/train.rec", f"--dst={folder}/store", "--workers=5"]


def test_laws_that_are_measured(monkeypatch, capsys):
    module = importlib.import_module("benchmarks.growth")
    monkeypatch.setattr(module.jax.config, "update", lambda *_: None)
    points = [(1, {"seconds": 1.0}), (2, {"seconds": 4.0}), (4, {"seconds": 16.0})]
    monkeypatch.setattr(module, "LAWS", {name: (lambda: points, {}) for name in ("rank", "tokens", "images")})
    for given, measured in ((["--law", "tokens", "images"], ["tokens", "images"]), ([], ["rank", "tokens", "images"])):
        monkeypatch.setattr("sys.argv", ["growth", *given])
        module.main()
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines if "seconds" in line] == measured


def test_pairs_whose_arithmetic_is_counted(monkeypatch, tmp_path, capsys):
    module = importlib.import_module("benchmarks.flops")
    monkeypatch.setattr(module, "full_size", lambda name: ())
    monkeypatch.setattr(module, "of_a_pair", lambda *_: {})
    monkeypatch.setattr(module, "evaluation", lambda pairs: (2 * len(pairs.a) * 10**9, 10**9))
    (tmp_path / "pairs.txt").write_text("1\t2\na 1 2\nb 1 2\na 1 b 1\na 2 b 2\n")
    made = synthetic.write(tmp_path / "s", range(20), 2, 0, split="test")
    stores.write_pairs(made.path, "lfw", synthetic.verification_pairs(made.labels, 20, 0))
    for given, told in (
        ("--pairs=" + str(tmp_path / "pairs.txt"), "LFW's 4 pairs"),
        (f"--store={made.path}", "LFW's 20 pairs"),
    ):
        monkeypatch.setattr("sys.argv", ["flops", given])
        module.main()
        assert told in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["flops"])
    module.main()
    assert "add --pairs=FILE or --store=DIR" in capsys.readouterr().out


def test_what_a_benchmark_measures(monkeypatch, tmp_path):
    module = importlib.import_module("benchmarks.decode")
    monkeypatch.setattr(module.os, "sched_setaffinity", lambda *_: None)

    class Opened(Exception):
        pass

    def opens(what):
        def call(path, *given, **_):
            raise Opened(what, str(path))

        return call

    monkeypatch.setattr(module, "Store", opens("opened"))
    monkeypatch.setattr(module.synthetic, "write", opens("drawn"))
    for given, what in ((["--store=there"], "opened"), ([], "drawn")):
        monkeypatch.setattr("sys.argv", ["decode", *given])
        with pytest.raises(Opened, match=what) as told:
            module.main()
        assert (told.value.args[1] == "there") == bool(given)
