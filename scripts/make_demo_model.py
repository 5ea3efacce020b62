"""Make the demo model, a small trained chat model as a Hugging Face Qwen folder: `python scripts/make_demo_model.py`."""
import sys

from qwen_mindspore.checkpoint.demo_model import main

if __name__ == "__main__":
    sys.exit(main())
