"""Operations on the hot paths: one folder each, with one public function and a reference."""
