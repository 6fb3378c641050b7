"""`python -m common.report`: see common/report/__init__.py."""
import sys

from common.report import main

if __name__ == "__main__":
    sys.exit(main())
