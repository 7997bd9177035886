"""The conversion of a section of xinetd.conf to an entry: its attributes, and notes on them.

Runs in the command line. Raises nothing.
"""

from __future__ import annotations

from superd.migrate.attributes import SectionValues, Values
from superd.migrate.entries import Note
from superd.migrate.sections import Section


class Conversion:
    """The attributes of a section. Each step of the conversion removes its own from `values`; those
    that are left at the end get a note. `given` keeps all.
    """

    def __init__(
        self, section: Section, inherited: Values, notes: list[Note], *, is_rejected: bool
    ) -> None:
        self.section = section
        self.notes = notes
        gathered = SectionValues(section, inherited, notes)
        self.values = gathered.values
        self.given = dict(self.values)
        self.is_rejected = is_rejected or bool(gathered.rejected)
        self.identity = self._text("id") or section.name

    def _note(self, text: str, attribute: str = "") -> None:
        """Add a note, at the line of an attribute if the section or the defaults set it."""
        value = self.given.get(attribute)
        if value is None:
            note = Note(self.section.file, self.section.line, f"{self.identity}: {text}")
        elif value.is_inherited:
            note = Note(value.file, value.line, f"defaults: {text}")
        else:
            note = Note(value.file, value.line, f"{self.identity}: {text}")
        self.notes.append(note)

    def _disable(self, why: str, attribute: str = "") -> None:
        """Leave the service disabled, since xinetd would not serve it, and add a note."""
        self.is_rejected = True
        value = self.given.get(attribute)
        if value is not None and value.is_inherited:
            attribute = ""  # the note belongs to each service, not to the defaults
        self._note(f"not enabled, because xinetd does not serve it: {why}", attribute)

    def _take(self, name: str) -> list[str]:
        value = self.values.pop(name, None)
        return value.words if value else []

    def _text(self, name: str) -> str:
        return " ".join(self._take(name))

    def _is_yes(self, name: str) -> bool:
        return self._text(name).lower() == "yes"

    def _words(self, name: str) -> list[str]:
        value = self.given.get(name)
        return value.words if value else []
