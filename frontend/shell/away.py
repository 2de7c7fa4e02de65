"""A banner while the server that serves the pages does not answer, instead of Streamlit's dialog.

Streamlit reconnects by itself and keeps what was entered; its dialog covers the page meanwhile.
"""

from __future__ import annotations

from frontend.html.blocks import component

# The dialog is the only sign of a lost connection that a page's script can see.
_JS = """
const TEXT = "The server does not answer. Reconnecting… Runs keep training, and this page " +
  "continues where it was.";
export default function () {
  const root = document.documentElement;
  const look = () => {
    const dialogs = [...document.querySelectorAll(".stDialog")];
    const away = dialogs.some((dialog) => dialog.textContent.startsWith("Connection error"));
    if (root.classList.contains("wb-away") === away) return;
    root.classList.toggle("wb-away", away);
    document.querySelector(".wb-banner")?.remove();
    if (!away) return;
    const banner = Object.assign(document.createElement("div"), { className: "wb-banner" });
    banner.setAttribute("role", "status");
    banner.textContent = TEXT;
    document.querySelector(".stApp").append(banner);
  };
  const observer = new MutationObserver(look);
  observer.observe(document.body, { childList: true, subtree: true });
  look();
  return () => observer.disconnect();
}
"""


def banner_while_away() -> None:
    """Show the banner whenever the connection is lost, on any page."""
    component("wb_away", js=_JS)(key="away", height=0)
