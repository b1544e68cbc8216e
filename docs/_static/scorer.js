// What the search ranks higher: titles that have a word of the query, then lessons.
const asked = (new URLSearchParams(window.location.search).get("q") || "")
  .toLowerCase().split(/\W+/).filter((word) => word.length > 2);

var Scorer = {
  score: ([page, title, anchor, kind, score]) => {
    const named = asked.some((word) => title.toLowerCase().includes(word.slice(0, 6)));
    return score + (named ? 20 : 0) + (page.startsWith("notebooks/") ? 6 : 0);
  },
  // Sphinx's own numbers
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
