"""Help on every page: the key `/`, and a list of keys with links, which `?` or its button opens."""

from __future__ import annotations

from frontend.html.blocks import base_path, component, href
from frontend.html.tokens import escaped
from frontend.shell.downloads import pages_serve_the_api

KEYS = {
    "/": "Go to the search box",
    "← →": "Previous and next feature, on a feature's page",
    "Ctrl+Enter": "Submit the text box",
    "Space": "Select the focused row of a list",
    "?": "This help",
    "Esc": "Close this help",
}

# Within .stApp, whose colors they have; React leaves what it did not make.
_JS = """
export default function ({ data }) {
  const app = document.querySelector(".stApp");
  app.querySelectorAll(".wb-help, .wb-helpbutton").forEach((old) => old.remove());
  const dialog = document.createElement("dialog"), button = document.createElement("button");
  dialog.className = "wb-help";
  dialog.ariaLabel = "Help";
  dialog.innerHTML = data;
  button.className = "wb-do wb-helpbutton";
  button.textContent = "?";
  button.title = button.ariaLabel = "Help and keyboard keys";
  button.onclick = () => dialog.showModal();
  dialog.onclick = (event) => {
    const link = event.target.closest("a:not([target])");
    if (event.target === dialog || link) dialog.close();
    if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    history.pushState({}, "", link.href);
    window.dispatchEvent(new PopStateEvent("popstate"));
  };
  app.append(button, dialog);
  const listen = (event) => {
    if (event.target.closest("input, textarea, [contenteditable]")) return;
    const box = document.querySelector(".st-key-search input");
    if (event.key === "?" && !dialog.open) dialog.showModal();
    if (event.key !== "/" || !box) return;
    event.preventDefault();
    box.focus();
  };
  document.addEventListener("keydown", listen);
  return () => {
    document.removeEventListener("keydown", listen);
    button.remove();
    dialog.remove();
  };
}
"""


def show_help() -> None:
    """Draw the button, and let the keys work."""
    data = help_html(links_to_api=pages_serve_the_api())
    component("wb_help", js=_JS)(key="help", data=data, height=0)


def help_html(*, links_to_api: bool) -> str:
    """The keys and the links; where pages and API have different ports, the API is only named."""
    keys = "".join(f"<dt><kbd>{escaped(k)}</kbd></dt><dd>{what}</dd>" for k, what in KEYS.items())
    api = f'<a href="{base_path()}/api/docs" target="_blank">REST API reference</a>'
    if not links_to_api:
        api = "REST API reference: <code>/api/docs</code> on its server"
    glossary = f'<a href="{base_path()}/{href("glossary", {})}">Glossary</a>'
    return (
        f"<h2>Keyboard</h2><dl>{keys}</dl><h2>Read more</h2><ul><li>{glossary}: every term and "
        f"metric, one line each</li><li>{api}</li></ul>"
        '<form method="dialog"><button class="wb-do">Close</button></form>'
    )
