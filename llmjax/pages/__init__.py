"""Pages that open offline: one file each, its charts and styles within.

    chart = charts.Plot("loss", "Loss (nats)", (charts.Curve("training", steps, losses),))
    drawing.write(chart, folder / "loss.png")
    drawing.svg(chart)  # follows the page's colours
    page.render("A run", [page.header(...), page.section("Curves", ...)], "Written by llmjax.")

What goes on a page is for those who have it to say: `train.report` shows a run,
`data.quality` what cleaning made of a corpus.
"""
