package main

import (
	"github.com/ai-identity/ai-identity/provider/prices"
)

const pricesHelp = "YAML `file` with prices, which override the built-in ones (docs/prices.md); read only at the start"

// loadPrices reads the file of --prices. Without a file it returns the built-in prices.
func loadPrices(file string) (*prices.Table, error) {
	var text []byte
	if file != "" {
		var err error
		if text, err = readTrusted(file, publicFile); err != nil {
			return nil, usagef("--prices: %v", err)
		}
	}
	table, err := prices.Load(text)
	if err != nil {
		return nil, usagef("--prices %s: %v", file, err)
	}
	return table, nil
}
