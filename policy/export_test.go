package policy

// WithoutMemo makes OPA evaluate each input, until the returned function is called.
func (b *Bundle) WithoutMemo() func() {
	b.engine.memo.off.Store(true)
	return func() { b.engine.memo.off.Store(false) }
}

// Remembered returns how many results of the memo were used.
func (b *Bundle) Remembered() uint64 { return b.engine.memo.used.Load() }
