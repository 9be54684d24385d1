from setuptools import setup

from peps_common import __version__

SCRIPTS = (
    "full_maja_process",
    "full_maja_download",
    "peps_maja_process",
    "peps_maja_download",
)

setup(
    name="peps_maja",
    version=__version__,
    description="Order and download Sentinel-2 images corrected by MAJA from a PEPS",
    python_requires=">=3.9",
    py_modules=[*SCRIPTS, "peps_common"],
    install_requires=["requests>=2.32.2", "urllib3>=2.2"],
    extras_require={
        "progress": ["tqdm"],
        "test": [
            "hypothesis",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "pywps",
            "tqdm",
            "trustme",
        ],
    },
    entry_points={
        "console_scripts": [f"{script} = {script}:main" for script in SCRIPTS]
    },
)
