// The search page quotes the article alone, without menus and the table of contents.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const whole = Search.htmlToText;
  Search.htmlToText = (text, anchor) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    const article = page.querySelector("article.bd-article");
    if (!article) return whole(text, anchor);
    article.querySelectorAll(".headerlink, .launch, script, style, math")
      .forEach((element) => element.remove());
    const part = anchor ? article.querySelector(anchor) : article;
    return (part || article).textContent;
  };
});
