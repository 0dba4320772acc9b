"""Self-contained HTML pages that open offline: one file with inline charts and styles.

    chart = charts.Plot("loss", "Loss (nats)", (charts.Curve("training", steps, losses),))
    drawing.write(chart, folder / "loss.png")
    drawing.svg(chart)  # follows the page's colours
    page.render("A run", [page.header(...), page.section("Curves", ...)], "Written by llmjax.")

The content comes from the callers: `train.report` shows a run, `data.quality` the effects of
cleaning on a corpus.
"""
