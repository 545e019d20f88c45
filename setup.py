from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# torchreid 0.2.5 of the package index declares no dependencies at all, though it imports cv2, tensorboard, scipy,
# gdown and six: what it needs is declared here.
TORCHREID = ["torchreid>=0.2.5", "opencv-python-headless>=4.8", "tensorboard>=2.14", "scipy>=1.11", "gdown>=5.2", "six"]

# search backends: docs/search.md. milvus-lite below 3 keeps files of another format.
FAISS = ["faiss-cpu>=1.8"]
MILVUS = ["pymilvus>=2.6", "milvus-lite>=3.1"]

# counts ranks of large galleries on several threads: docs/retrieval.md
NUMBA = ["numba>=0.60"]

setup(
    name="ppreid_plugin",
    version="0.1.0",
    description="Privacy-preserving person re-identification: an extension of torchreid",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["ppreid_plugin", "ppreid_plugin.*"]),
    package_data={"ppreid_plugin": ["py.typed", "report/templates/*.j2"]},
    install_requires=[
        *TORCHREID,
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "Pillow>=10",
        "yacs>=0.1.8",
        "opacus>=1.5",
        "opendp>=0.12",
        "safetensors>=0.4.2",
        "filelock>=3.12",
        "tabulate>=0.9",
        "rich>=13",
        "scikit-learn>=1.4",
        "concept-erasure>=0.2.4",
        "matplotlib>=3.8",
        "torchmetrics>=1.9,<2",
        "jinja2>=3.1",
    ],
    extras_require={
        "lpips": ["lpips>=0.1.4"],
        "fast": NUMBA,
        "faiss": FAISS,
        "milvus": MILVUS,
        "search": [*FAISS, *MILVUS],
        "test": [
            *NUMBA,
            *FAISS,
            *MILVUS,
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "dp-accounting>=0.4",
            "mpmath>=1.3",
            "pytest-benchmark>=4",
            "scikit-image>=0.22",
        ],
        "dev": ["ruff>=0.6", "mypy>=1.11", "pre-commit>=3", "types-tabulate", "types-PyYAML"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
