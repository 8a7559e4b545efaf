"""The network, its data, and how it is trained and tested."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A small CNN: images of 8 by 8 pixels, three classes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(4 * 3 * 3, 3)

    def forward(self, x):
        """Logits of a batch."""
        x = functional.max_pool2d(functional.relu(self.norm(self.conv(x))), 2)
        return self.fc(self.dropout(x.flatten(1)))


def make_data(seed, count):
    """Noisy images of stripes: horizontal, vertical and diagonal ones."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    stripes = torch.stack([row % 4 < 2, column % 4 < 2, (row + column) % 4 < 2]).float()
    images = stripes[labels] + 0.8 * torch.randn(count, 8, 8, generator=generator)
    return TensorDataset(images.unsqueeze(1), labels)


def load_data(partition_id, batch_size):
    """The batches of one partition: for training, in random order, and for tests."""
    train, test = torch.utils.data.random_split(
        make_data(partition_id, 120), [96, 24], generator=torch.Generator().manual_seed(42)
    )
    return DataLoader(train, batch_size=batch_size, shuffle=True), DataLoader(test, batch_size=batch_size)


def train(net, loader, epochs, lr):
    """Train with SGD; return the mean loss."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    total = 0.0
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(loader))


def measure(net, loader, noise=0.0):
    """Return the mean loss and the accuracy, on images with some more noise if wanted."""
    net.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for images, labels in loader:
            outputs = net(images + noise * torch.randn_like(images))
            loss += functional.cross_entropy(outputs, labels).item()
            correct += (outputs.argmax(1) == labels).sum().item()
    return loss / len(loader), correct / len(loader.dataset)
