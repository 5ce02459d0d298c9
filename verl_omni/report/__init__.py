"""The report: one self-contained HTML page from results files and training logs.

page.py      tables, matrices and the page itself (template page.html.jinja)
clips.py     a clip's frames, waveform and sound, inlined
curves.py    verl's training logs, as line charts
"""
