"""Likely wrong answers of lesson 00, each with words of the message it must get."""

WRONG = {
    "count": [
        ("answer = 64 * 32 + 32 * 10", "has a bias too"),
        ("answer = 64 * 32 + 32", "That is the first layer"),
        ("answer = 64 + 32 + 10", "These are the sizes"),
        ("answer = 650", "one layer from 64 to 10"),
        ("answer = 330", "That is the second layer"),
        ("answer = len(list(mlp((64, 32, 10)).parameters()))", "in 4 tensors"),
        ('answer = "2410"', "without quotes"),
        ("answer = torch.tensor([2080, 330])", "wanted one number"),
    ],
    "steps": [
        ("answer = 1437 // 64", "29 images over"),
        ("answer = 1437 / 64", "There is no 22.4531th step"),
        ("answer = 1437", "the number of images"),
        ("answer = 1437 % 64", "29 images are left over"),
        ("answer = 8 * 23", "for all 8 epochs"),
        ("answer = 28", "all 1797 images"),
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
        (
            "def accuracy(logits, labels):\n"
            "    return (logits.abs().argmax(dim=1) == labels).float().mean()\n",
            "yours gives 0.25. The largest logit",
        ),
        (
            "def accuracy(logits, labels):\n"
            "    right = logits.softmax(1).gather(1, labels[:, None])\n"
            "    return (right > 0.5).float().mean()\n",
            "yours gives 0. The largest logit",
        ),
        (
            "def accuracy(logits, labels):\n"
            "    hits = logits.argmax(dim=1, keepdim=True) == labels\n"
            "    return hits.float().mean()\n",
            "Two of three rows are right, and yours gives 0.3333",
        ),
        (
            "def accuracy(logits, labels):\n"
            "    logits -= logits.amax(dim=1, keepdim=True)\n"
            "    return (logits == 0)[range(len(labels)), labels].float().mean()\n",
            "You changed `logits`",
        ),
        (
            "def accuracy(logits, labels):\n"
            "    share = (logits.argmax(dim=1) == labels).float().mean()\n"
            "    return f'{share:.2f}'\n",
            "wanted one number, the share",
        ),
    ],
    "overfit": [
        ('answer = "training"', "goes on falling"),
        ('answer = " Both"', "the training itself would be failing"),
        ('answer = "neither"', "One of them rises"),
        ("answer = 7", "Wanted one of"),
    ],
}
