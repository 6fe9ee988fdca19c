"""How names of the configuration read on a page."""

MODES = {"full": "Full fine-tuning", "lora": "LoRA", "l_lora": "L-LoRA"}
METHODS = {
    **{"pretrained": "pre-trained", "individual": "individual models", "multitask": "multi-task"},
    **{"tsv_m": "TSV-M", "iso_c": "Iso-C", "iso_cts": "Iso-CTS", "tall_mask": "TALL-mask"},
    **{"magnitude_prune": "magnitude pruning", "model_stock": "Model Stock", "karcher": "Karcher mean"},
    **{"multislerp": "Multi-SLERP", "knots": "KnOTS + TIES", "core_space": "Core space"},
}
STEPS = {  # what may come before or after a merging method, whose name then follows
    **{"dare": "DARE +", "della": "DELLA +", "magnitude_prune": "magnitude pruning +", "breadcrumbs": "Breadcrumbs +"},
    **{"lines": "LiNeS +", "svc": "SVC +", "doge": "DOGE +", "knots": "KnOTS +", "core_space": "Core space +"},
    **{"concrete": "Concrete"},
}
WORDS = {
    **{"adamerging": "AdaMerging", "adarank": "AdaRank", "breadcrumbs": "Breadcrumbs", "cart": "CART"},
    **{"consensus": "Consensus", "dare": "DARE", "della": "DELLA", "doge": "DOGE", "emr": "EMR"},
    **{"fisher": "Fisher", "jpeg": "JPEG", "lines": "LiNeS", "lora": "LoRA", "lorahub": "LoraHub", "mnist": "MNIST"},
    **{"nyt": "NYT", "pcb": "PCB", "regmean": "RegMean", "slerp": "SLERP", "sms": "SMS", "svc": "SVC"},
    **{"ties": "TIES", "trec": "TREC", "wudi": "WUDI"},
}


def label(name: object) -> str:
    """The readable form of a method, mode or task: as papers spell it if known, else as plain words."""
    text = MODES.get(str(name)) or _spelt(str(name))
    return text[:1].upper() + text[1:]


def _spelt(name: str) -> str:
    """The form that it has in the middle of a sentence."""
    if name in METHODS:
        return METHODS[name]
    for step, words in STEPS.items():
        if name.startswith(f"{step}_"):
            return f"{words} {_spelt(name.removeprefix(f'{step}_'))}"
    text = " ".join(WORDS.get(word, word) for word in name.split("_"))
    return text.replace(" wise", "-wise").replace(" plus plus", "++")


def in_space(name: object, space: str) -> str:
    """The readable form of a method with the space it merged in, where there is a choice of one."""
    return f"{label(name)} ({space})" if space else label(name)


def percent(fraction: float) -> str:
    """A fraction as per cent with one decimal and without the sign: '84.4', or '–' if it is missing."""
    return "–" if fraction != fraction else f"{100 * fraction:.1f}"


def points(difference: float) -> str:
    """A difference of two fractions in percentage points, signed: '+3.1'."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def duration(seconds: float) -> str:
    """A time as '0.4 s', '12 s', '3 min 20 s' or '2 h 05 min', or '–' if it is missing."""
    if seconds != seconds:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float, unit: str = "") -> str:
    """A number of bytes or parameters with a decimal prefix: '1.2 G', or '–' if it is missing."""
    if count != count:
        return "–"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.1f} {prefix}{unit}"
    return f"{count:.0f} {unit}".strip()


def millions(parameters: float) -> str:
    """A number of parameters as '12.3 M' ('0.012 M' if that few), or '–' if there are none or it is missing."""
    return f"{parameters / 1e6:.{1 if parameters >= 1e5 else 3}f} M" if parameters > 0 else "–"
