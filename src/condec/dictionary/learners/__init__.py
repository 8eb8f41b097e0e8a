"""Ways to find atoms in rows: one file a family, all behind `condec.dictionary.base.Learner`."""
