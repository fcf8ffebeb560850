// Copying text for the reader, also where a page has no clipboard: browsers give one only to https and to localhost.

/** Put `text` on the clipboard. Gives whether it is there. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.className = "sr";
    area.setAttribute("aria-hidden", "true");
    area.value = text;
    // Inside a dialog or not: selecting needs it in the document.
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}
