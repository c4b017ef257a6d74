"""Whether the hub of models and data can be asked: found out at once, where its libraries would try for a minute."""

from selfcorrect.errors import first_line

_SECONDS = 5.0  # how long the hub may take to give any answer at all


def away() -> str:
    """Why the hub cannot be asked, as half of a sentence; empty where it gives an answer, whatever it says."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "the hub is switched off (HF_HUB_OFFLINE)"
    try:
        status = get_session().head(constants.ENDPOINT, timeout=_SECONDS).status_code
    except Exception as error:  # noqa: BLE001 - of the HTTP library in use, which differs from version to version
        reason = first_line(error)
    else:  # a broken hub, or a proxy that keeps it away
        reason = f"status {status}" if status >= 500 or status == 407 else ""
    return reason and f"the hub ({constants.ENDPOINT}) does not answer ({reason})"
