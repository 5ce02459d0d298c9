"""HumanOmni: video (SigLIP), sound (Whisper) and a question-aware gate (BERT) in front of Qwen2."""
