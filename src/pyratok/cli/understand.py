"""``pyratok segment``, ``localize``, ``classify``, ``search`` and ``ask``: what tokens say, in words and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pyratok.cli import common
from pyratok.cli.clips import ClipArgument, load_reading, look_at, stills_of, token_still, tokens_of
from pyratok.cli.common import FramesOption, JsonOption, ModelOption, Output, ShownStopwatch, SizeOption

if TYPE_CHECKING:
    from pyratok.tasks.qa import Reader
    from pyratok.tasks.segmentation import Instance
    from pyratok.types import ModelId

TIMELINES = (".svg", ".png")


def segment(
    source: ClipArgument,
    words: Annotated[list[str], typer.Argument(metavar="WORD...", help="What to look for, each in a word or more.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.mp4", help="The video (or image) with its masks.")
    ] = None,
    level: Annotated[
        str, typer.Option("--level", metavar="N|fused", help="Whose tokens to read; default: the last level's.")
    ] = "last",
    background: Annotated[
        float | None, typer.Option(metavar="COSINE", help="What a word has to beat; -1 gives every pixel to a word.")
    ] = None,
    crf: Annotated[
        bool, typer.Option("--crf", help="Move borders to edges of the picture; of a .pyra, the decoded one.")
    ] = False,
    size: SizeOption = None,
    frames: FramesOption = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Find where things are: a mask per word, in colour over the video."""
    from pyratok.data.video_io import load_video
    from pyratok.report.overlay import save_overlay
    from pyratok.tasks.classification import check_texts
    from pyratok.tasks.crf import CRFConfig
    from pyratok.tasks.segmentation import segment as segment_tokens

    out, watch = Output(json_file, source, output, model), ShownStopwatch()
    check_texts(words, "word")
    chosen: dict[str, Any] = {"level": _level(level)} | _given(background=background)
    clip = look_at(source, size, frames)
    if output is not None:
        common.check_video_output(output, clip.fps, clip.frames, source)
    advice = "segment a part that pyratok decode --to cuts off" if clip.is_tokens else "use --size S or --frames N"
    common.check_memory(source, clip.frames or 1, clip.height, clip.width, advice)
    tokenizer = load_reading(model, watch)
    held = clip.levels or tokenizer.num_levels
    if chosen["level"] != "fused" and chosen["level"] >= held:
        raise ValueError(f"there are {held} levels, asked for level {level}")
    with tokens_of(tokenizer, source, size, frames, watch) as reader:
        tokens = reader.read()
    video = None
    if output is not None or crf:
        with watch.step("decoding" if clip.is_tokens else "reading the video"):
            video = tokenizer.decode(tokens) if clip.is_tokens else load_video(source, size=size, frames=frames)
    with watch.step("segmenting"):
        refining = CRFConfig() if crf else None
        found = segment_tokens(tokenizer, tokens, words, video=video, crf=refining, **chosen)
        instances = found.instances()
    if output is not None:
        assert video is not None
        with watch.step("writing the picture"):
            save_overlay(video, found, output, fps=clip.fps)

    shares = found.masks.float().mean(dim=(1, 2, 3)).tolist()
    best = found.scores.amax(dim=(1, 2, 3)).tolist()
    per_word = [
        {"word": word, "share": share, "best_score": score}
        for word, share, score in zip(found.words, shares, best, strict=True)
    ]
    rows = [
        [word, f"{share:.1%}", f"{score:.3f}", str(sum(one.word == word for one in instances))]
        for word, share, score in zip(found.words, shares, best, strict=True)
    ]
    out.table(["word", "of the pixels", "best score", "tubes"], rows)
    _say_written(out, output)
    facts = {"words": per_word, "instances": [_instance_facts(one) for one in instances]}
    out.finish(_facts(source, output, tokens.model) | facts | {"seconds": watch.seconds})


def localize(
    source: ClipArgument,
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="What may happen, in words.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.svg", help="The timeline, as .svg or .png.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, metavar="FRAMES", help="Smooth scores over so many; default: 25.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(metavar="T", help="Share of the way up to the best score; default: 0.5.")
    ] = None,
    absolute: Annotated[bool, typer.Option("--absolute", help="The threshold is a cosine.")] = False,
    most: Annotated[int | None, typer.Option(min=1, metavar="N", help="Spans of a query; default: 5.")] = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Find when things happen: spans in seconds, with a timeline of scores."""
    from pyratok.files import write_atomically
    from pyratok.report.png import encode_png
    from pyratok.report.timeline import timeline
    from pyratok.tasks.classification import check_texts
    from pyratok.tasks.localization import rate_of, score_curves, spans_of

    out, watch = Output(json_file, source, output, model), ShownStopwatch()
    check_texts(queries, "query")
    if absolute and threshold is None:
        raise ValueError("--absolute says what --threshold means; give that too, as a cosine")
    clip = look_at(source, size, frames)
    if clip.fps is None:
        raise ValueError(f"{source} is a single image, in which nothing has a time; give a video")
    _check_picture(output, source, TIMELINES)
    chosen = {"absolute": absolute} | _given(window=window, threshold=threshold, most=most)
    tokenizer = load_reading(model, watch)
    with tokens_of(tokenizer, source, size, frames, watch) as reader:
        with watch.step("localizing"):
            fps, curves = rate_of(reader.geometry), score_curves(tokenizer, reader, queries)
            spans, scores = spans_of(curves, fps, queries, **chosen), curves.scores.double().numpy()
        edges, model_id = curves.edges / fps, reader.model
        if output is not None:
            with watch.step("drawing the timeline"):
                stills = stills_of(tokenizer, source, clip, reader)
                drawn = timeline(source.name, queries, scores, edges, spans, stills)
                as_png = output.suffix.lower() == ".png"
                write_atomically(output, encode_png(drawn.pixels()) if as_png else drawn.svg())

    rows = [[span.query, f"{span.start:.2f} s", f"{span.end:.2f} s", f"{span.score:.3f}"] for span in spans]
    out.table(["query", "from", "to", "score"], rows)
    missing = [query for query in queries if query not in {span.query for span in spans}]
    if missing:
        out.facts({"not found": ", ".join(missing)})
    _say_written(out, output)
    tracks = [{"query": query, "scores": row.tolist()} for query, row in zip(queries, scores, strict=True)]
    facts = {"spans": [span._asdict() for span in spans], "step_edges": edges.tolist(), "steps": tracks}
    out.finish(_facts(source, output, model_id) | facts | {"seconds": watch.seconds})


def classify(
    source: ClipArgument,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="What the clip may show.")],
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--template", metavar="TEXT", help="A sentence with {} for the name; give several for their mean."
        ),
    ] = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Say which of some names a clip goes with."""
    from pyratok.tasks.classification import TEMPLATES, check_texts
    from pyratok.tasks.classification import classify as classify_tokens

    out, watch = Output(json_file, source, model), ShownStopwatch()
    check_texts(names, "name")
    look_at(source, size, frames)
    tokenizer = load_reading(model, watch)
    with tokens_of(tokenizer, source, size, frames, watch) as reader, watch.step("classifying"):
        ranked = classify_tokens(tokenizer, reader, names, templates or TEMPLATES).ranked()
    out.table(["name", "score"], [[name, f"{score:.3f}"] for name, score in ranked])
    scores = [{"name": name, "score": score} for name, score in ranked]
    out.finish(_facts(source, None, reader.model) | {"ranked": scores, "seconds": watch.seconds})


def search(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder with .pyra files, in it or below.")],
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, in words.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.html", help="The contact sheet of what was found.")
    ] = None,
    most: Annotated[int, typer.Option("-k", "--most", min=1, metavar="N", help="Clips to show.")] = 12,
    index_file: Annotated[
        Path | None, typer.Option("--index", metavar="FILE", help="Where the index is kept; default: in the folder.")
    ] = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Find stored clips by what they show. The folder is indexed once; what is new or changed is added."""
    from pyratok.files import write_atomically
    from pyratok.report.contact_sheet import Tile, render, time_text
    from pyratok.tasks.classification import check_texts
    from pyratok.tasks.retrieval import open_index

    out, watch = Output(json_file, folder, output, index_file, model), ShownStopwatch()
    check_texts([query], "query")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the one that holds the .pyra files")
    _check_picture(output, folder, (".html",))
    if index_file is not None:
        common.check_output(index_file, *([] if output is None else [output]))
    tokenizer = load_reading(model, watch)
    with watch.counted("indexing") as progress:
        index = open_index(
            tokenizer, folder, file=index_file, on_file=lambda path, number, total: progress(number, total)
        )
    with watch.step("searching"):
        hits = index.search(query, most, model=tokenizer)
    names = [hit.path.relative_to(index.folder).as_posix() for hit in hits]
    if output is not None:
        with watch.step("decoding what was found"):
            stills = [token_still(tokenizer, hit.path, hit.start) for hit in hits]
        tiles = [
            Tile(name=name, score=hit.score, start=hit.start, end=hit.end, still=still)
            for name, hit, still in zip(names, hits, stills, strict=True)
        ]
        write_atomically(output, render(query, str(folder), tiles, len(index), index.model))
    rows = [[name, f"{hit.score:.3f}", time_text(hit.start, hit.end)] for name, hit in zip(names, hits, strict=True)]
    out.table(["clip", "score", "where"], rows)
    _say_written(out, output)
    found = [hit._asdict() | {"path": name} for name, hit in zip(names, hits, strict=True)]
    facts = {"query": query, "clips": len(index), "hits": found, "seconds": watch.seconds}
    out.finish(_facts(folder, output, index.model) | facts)


def ask(
    source: ClipArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to answer, in words.")],
    options: Annotated[
        list[str] | None, typer.Option("--option", metavar="TEXT", help="An answer to choose from; give two or more.")
    ] = None,
    answerer: Annotated[
        str | None,
        typer.Option("--answerer", metavar="FOLDER", help="Choose by this network; default: what ships with MODEL."),
    ] = None,
    token_lm: Annotated[
        str | None, typer.Option("--token-lm", metavar="FOLDER", help="Choose by this language model over tokens.")
    ] = None,
    language_model: Annotated[
        str | None, typer.Option("--lm", metavar="MODEL", help="Answer by this transformers model; needs --projector.")
    ] = None,
    projector: Annotated[
        str | None, typer.Option("--projector", metavar="FOLDER", help="What was trained to show tokens to --lm.")
    ] = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Answer a question about a clip.

    Where no reader is given and none ships with the model, the option wins whose statement is most like what the tokens
    say: that tells what is there, hardly where, when or how many.
    """
    from pyratok.model import companions
    from pyratok.tasks.classification import check_texts
    from pyratok.tasks.qa import ask as ask_tokens

    out, watch = Output(json_file, source, answerer, token_lm, projector, model), ShownStopwatch()
    check_texts([question], "question")
    if options is not None:
        check_texts(options, "option")
    if (language_model is None) != (projector is None):
        raise ValueError("--lm and --projector go together: a language model and what shows tokens to it")
    if sum(reader is not None for reader in (answerer, token_lm, language_model)) > 1:
        raise ValueError("give one of --answerer, --token-lm and --lm")
    if len(options or ()) < 2 and not (options is None and language_model is not None):
        raise ValueError("give two or more answers to choose from, each as --option TEXT; only an --lm answers freely")
    look_at(source, size, frames)
    if answerer is None and token_lm is None and language_model is None:
        shipped = companions.shipped_companion(model, companions.ANSWERER)
        answerer = None if shipped is None else str(shipped)
    by_similarity = answerer is None and token_lm is None and language_model is None
    tokenizer = load_reading(model, watch) if by_similarity else common.load_model(model)
    with watch.step("loading the reader"):
        reader = _reader(tokenizer.model_id, answerer, token_lm, language_model, projector)
    with tokens_of(tokenizer, source, size, frames, watch) as file:
        tokens = file.read()
    with watch.step("answering"):
        answer = ask_tokens(tokenizer, tokens, question, options, reader=reader)
    out.facts({"answer": answer.text})
    scores = [] if answer.scores is None else answer.scores.tolist()
    scored = list(zip(options or [], scores, strict=True))
    if scored:
        out.table(["option", "score"], [[option, f"{score:.3f}"] for option, score in scored])
    facts = {
        "question": question,
        "answer": answer.text,
        "option": answer.option,
        "options": [{"text": option, "score": score} for option, score in scored],
        "reader": type(reader).__name__,
    }
    out.finish(_facts(source, None, tokens.model) | facts | {"seconds": watch.seconds})


def _level(text: str) -> int | Literal["fused"]:
    """A level as the tasks count it, from 0; raises ValueError for what is none."""
    if text == "fused":
        return "fused"
    if text == "last":
        return -1
    if not text.isdecimal() or text == "0":
        raise ValueError(f"--level is a number from 1, or fused, got {text!r}")
    return int(text) - 1


def _reader(
    tokenizer: ModelId, answerer: str | None, token_lm: str | None, language_model: str | None, projector: str | None
) -> Reader:
    from pyratok.tasks.qa import AnswererReader, LanguageModelReader, SimilarityReader, TokenLMReader

    if answerer is not None:
        return AnswererReader.load(answerer, tokenizer)
    if token_lm is not None:
        return TokenLMReader.load(token_lm, tokenizer)
    if language_model is not None and projector is not None:
        return LanguageModelReader.load(language_model, projector, tokenizer)
    return SimilarityReader()


def _given(**options: Any) -> dict[str, Any]:
    """Without those that are None: the tasks know their defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _check_picture(output: Path | None, source: Path, suffixes: Sequence[str]) -> None:
    if output is None:
        return
    common.check_output(output, source)
    if output.suffix.lower() not in suffixes:
        raise ValueError(f"{output} should end in {' or '.join(suffixes)}")


def _instance_facts(instance: Instance) -> dict[str, Any]:
    """``box``: left, top, width and height of the pixels that it ever covers; frames count from 0."""
    places = instance.masks.nonzero()
    (first, top, left), (last, bottom, right) = places.amin(0).tolist(), places.amax(0).tolist()
    return {
        "word": instance.word,
        "score": instance.score,
        "first_frame": first,
        "last_frame": last,
        "box": [left, top, right - left + 1, bottom - top + 1],
        "pixels": len(places),
    }


def _facts(source: Path, output: Path | None, model: ModelId) -> dict[str, Any]:
    return {"input": source, "output": output, "model": {"name": model.name, "fingerprint": model.fingerprint}}


def _say_written(out: Output, output: Path | None) -> None:
    if output is not None:
        out.facts({"wrote": output})
