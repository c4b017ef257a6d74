# Sourced in the repository's root, before any command on a machine that has nothing but what carry.py brought.
export PYTHONPATH="$PWD/src:$PWD/.carry/site" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
