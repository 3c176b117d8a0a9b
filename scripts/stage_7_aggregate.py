"""Stage 7: combine all results of a seed, draw, write the report, copy everything to permanent storage."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.stage_runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.aggregate import collect, copy_to_permanent, final_results, publish_model
    from utils.files import write_text
    from utils.reports.examples import shown_examples
    from utils.reports.figures import draw_all
    from utils.reports.html import page
    from utils.reports.model_card import model_card
    from utils.reports.tables import all_tables
    from utils.reports.text import summary

    directory = context.places.results(context.seed)
    found = collect(context.places, context.seed)
    results = final_results(found)
    context.provenance |= {
        "checkpoints": found["evaluation"]["_metadata"]["checkpoints"],
        "missing_datasets": results["missing_datasets"],
    }
    metadata = context.metadata()
    tables = all_tables(results)
    for table in tables:
        write_text(directory / "tables" / f"{table.name}.csv", table.csv())
        write_text(directory / "tables" / f"{table.name}.tex", table.tex())
    alternative = draw_all(results, directory / "figures")
    text = summary(results, metadata, tables)
    write_text(directory / "experiment_summary.txt", text)
    examples = shown_examples(directory / "hotflip_records.jsonl", context.places.pretrained / "tokenizer.json")
    write_text(directory / "report.html", page(results, metadata, tables, directory / "figures", alternative, examples))
    for arm in ("baseline", "monotonic"):
        best = context.places.model(context.seed, arm)
        publish_model(best, directory / "models" / arm, model_card(arm, results, metadata))
    context.write_result("final_results.json", results)
    copied = copy_to_permanent(directory, context.places.final(context.seed))
    context.log.info("copied %d files to %s", copied, context.places.final(context.seed))
    context.log.info("%s", results["verdict"]["attack"])
    context.log.info("report: %s", directory / "report.html")


if __name__ == "__main__":
    sys.exit(run_stage(7, work))
