"""What a training run reads, made from images: questions, rubrics, references and captions, checked before they are kept."""
