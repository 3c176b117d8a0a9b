"""Gradient-guided attacks on T5 summarizers: HotFlip, universal triggers, controls, transfer. Import the modules.

What a stage uses (everything below is keyword or positional exactly as written):

    context.AttackContext(tokenizer, legal, prefix, max_input_length, max_target_length, decoding, batch_tokens,
                generation_tokens, precision="auto", generation_precision="fp32", rouge_processes=1, stop_requested=...)
        legal = legal_tokens.LegalTokens(legal_tokens.TokenizerView(tokenizer), token_set="roundtrip",
                                         embedding_size=model.config.vocab_size)      built once
    context.Victim(key, model, weights)           weights: hash of the model's weights, ties unit files to it
    examples.Example(id, document, summary)

Stage 6
    hotflip_experiment.hotflip_sections(context, load, model_keys, examples, HotFlipSettings(...), ControlSettings(...),
                                        cache_dir=..., shard=(0, 1)) -> {section: [record]}
        load(model_key) -> Victim; called once or twice per model, one model in memory at a time
    hotflip_experiment.hotflip_results(sections, model_keys, settings, samples=, seed=, confidence=) -> results (JSON)
    hotflip_experiment.rows_of(sections) -> rows for a JSONL; sections_of(rows) -> sections (also from several shards)
    hotflip.attack_examples(context, victim, examples, settings, cache_dir=...) -> [record]       one model, no controls

Stage 5
    trigger_experiment.trigger_sections(context, load, model_keys, optimise_on, evaluate_on, TriggerSettings(...),
                                        cache_dir=..., shard=(0, 1), gradient_free_types=("lead",)) -> sections
    trigger_experiment.trigger_results(sections, model_keys, settings, samples=, seed=, confidence=) -> results (JSON)
    trigger_experiment.learned_triggers_csv(results, model_keys, types) -> text
    triggers.optimise_trigger(context, victim, objective, slotted, type, settings, state_file=...) -> found (JSON)
    trigger_evaluation.evaluate_trigger(...) -> [record]

All raise errors.Interrupted, with finished units saved, once context.stop_requested() says so, and errors.UserError
subclasses for what a person must mend. A shard's sections are written with rows_of; the run that joins the shards reads
all of them with sections_of and calls the results function.
"""
