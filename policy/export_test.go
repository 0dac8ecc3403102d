package policy

// WithoutMemo makes OPA evaluate each input, until the returned function is called.
func (b *Bundle) WithoutMemo() func() {
	b.engine.memo.off.Store(true)
	return func() { b.engine.memo.off.Store(false) }
}

// Remembered returns how many results of the memo were used.
func (b *Bundle) Remembered() uint64 { return b.engine.memo.used.Load() }

// Facts returns a function that evaluates a document in Go. It reports whether the conditions
// hold. For an allow it also reports whether the document selects the caller.
func Facts(doc []byte) (func(Input) (matches, selects bool), error) {
	d, err := parse(doc)
	if err != nil {
		return nil, err
	}
	_, rules := generate([]string{"pol_1"}, []document{d})
	fs := factsOf(rules)
	return func(in Input) (matches, selects bool) {
		t := trial{in: &in}
		return fs.rules[0](&t), len(rules) > 1 && fs.rules[1](&t)
	}, nil
}
