"""An HTML page taken apart for tests."""

from html.parser import HTMLParser

VOID = {"meta", "wbr", "br", "link"}


class Document(HTMLParser):
    """Collects what a page consists of, and fails where its tags do not balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[tuple[str, str]]] = []
        self.heads: list[str] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"an attribute of {tag} is given twice"
        self.tags.append((tag, attributes))
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append((attributes["data-sort"], ""))
        elif tag == "th":
            self.heads.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open or self.open[-1:] == ["script"]:
            return
        self.words.append(data)
        if "td" in self.open and "title" not in self.open:
            key, text = self.rows[-1][-1]
            self.rows[-1][-1] = (key, text + data)
        elif self.open[-1:] in (["h1"], ["h2"]):
            self.headings.append(data)
        elif "th" in self.open:
            self.heads[-1] += data

    @property
    def text(self) -> str:
        return "".join(self.words)

    def all(self, tag: str, css: str = "") -> list[dict[str, str]]:
        return [a for t, a in self.tags if t == tag and css in f" {a.get('class', '')} ".split(" ")]

    def column(self, title: str) -> list[tuple[str, str]]:
        """Sort key and text of each row's cell under a heading."""
        at = self.heads.index(title)
        return [row[at] for row in self.rows if row]
