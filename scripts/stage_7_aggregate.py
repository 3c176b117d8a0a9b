"""Stage 7: combine all results of a seed, draw, write the report, copy everything to permanent storage."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.analysis.aggregate import collect, copy_to_permanent, findings, hashes_below, publish_model
    from utils.core.codec import to_json
    from utils.core.files import sha256_of
    from utils.reports.files import write_report
    from utils.reports.verdict import final_results

    directory, permanent = context.paths.results(context.seed), context.paths.final(context.seed)
    found = collect(context.paths, context.seed)
    final = final_results(findings(found, context.settings.QUALITY_MARGIN))
    context.provenance |= {
        "checkpoints": found["evaluation"]["_metadata"]["checkpoints"],
        "missing_datasets": final.missing_datasets,
    }
    metadata = context.metadata()
    for arm in final.trainings:
        publish_model(context.paths.model(context.seed, arm), directory / "models" / arm)
    for name in ("tables", "figures"):  # what an earlier run had and this one has not must not stay
        shutil.rmtree(directory / name, ignore_errors=True)
    write_report(final, metadata, directory, directory)
    context.provenance["files"] = hashes_below(directory, without="final_results.json")
    context.write_result("final_results.json", to_json(final))
    context.log.info("copied %d files to %s", copy_to_permanent(directory, permanent), permanent)
    for sentence in (final.verdict.attack, final.verdict.triggers, final.verdict.cost):
        context.log.info("%s", sentence)
    context.log.info("report: %s", directory / "report.html")
    # The one number to keep elsewhere (in a paper, a mail): it fixes every file, through the hashes in this one.
    context.log.info("sha256 of final_results.json: %s", sha256_of(permanent / "final_results.json"))


if __name__ == "__main__":
    sys.exit(run_stage(7, work))
