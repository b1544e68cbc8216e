"""Likely wrong answers of lesson 00, each with words of the message it must get."""

WRONG = {
    "count": [
        ("answer = 64 * 32 + 32 * 10", "has a bias too"),
        ("answer = 64 * 32 + 32", "That is the first layer"),
        ("answer = 64 + 32 + 10", "These are the sizes"),
        ("answer = 650", "one layer from 64 to 10"),
    ],
    "steps": [
        ("answer = 1437 // 64", "29 images over"),
        ("answer = 1437 / 64", "There is no 22.4531th step"),
        ("answer = 1437", "the number of images"),
        ("answer = 29", "all 1797 images"),
    ],
    "accuracy": [
        (
            "def accuracy(logits, labels):\n"
            "    return (logits.argmax(dim=1) == labels).sum()\n",
            "how many are right",
        ),
        (
            "def accuracy(logits, labels):\n"
            "    return 100 * (logits.argmax(dim=1) == labels).float().mean()\n",
            "percentage",
        ),
        (
            "def accuracy(logits, labels):\n"
            "    return (logits.argmax(dim=1) != labels).float().mean()\n",
            "share of wrong answers",
        ),
        (
            "def accuracy(logits, labels):\n"
            "    return (logits.argmax(dim=0) == labels).float().mean()\n",
            "in each row",
        ),
        (
            "def accuracy(logits, labels):\n"
            "    return (logits.argmax(dim=1) == labels).sum() / logits.shape[1]\n",
            "Divide by the number of rows",
        ),
        (
            "def accuracy(logits, labels):\n"
            "    return (logits.argmax(dim=1) == labels).mean()\n",
            "`.float()` first",
        ),
        (
            "def accuracy(logits, labels):\n"
            "    return (logits.argmax(dim=1) == labels).float()\n",
            "of each row whether it is right",
        ),
        (
            "def accuracy(logits, labels):\n"
            "    (logits.argmax(dim=1) == labels).float().mean()\n",
            "returned None",
        ),
    ],
    "overfit": [
        ('answer = "training"', "goes on falling"),
        ('answer = " Both"', "the training itself would be failing"),
        ('answer = "neither"', "One of them rises"),
        ("answer = 7", "Wanted one of"),
    ],
}
