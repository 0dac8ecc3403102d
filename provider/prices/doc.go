// Package prices computes the cost of a request from the prices of models.
//
//	Load   the built-in list, an override file → Table
//	Cost   Table, provider, models' names, usage, time → nano-dollars, or: not known
//
// The built-in list (list.json) is data of the package genai-prices, converted by
// tools/prices.py. It applies only to a provider whose kind and base URL are those of the
// vendor's own API. Another server with OpenAI's format and a model called gpt-4o may have
// other prices. An override file has the prices for all other providers, and comes first.
//
// # Unknown costs
//
// Cost returns false instead of an estimate in these cases:
//
//   - the list does not have the model or the service tier
//   - the model has no rate for a sort of tokens
//   - the figures contradict each other
//
// # Arithmetic
//
// A rate is a whole number of nano-dollars per million tokens, so every published price is
// exact. Tokens times rates are added in 128 bits and divided by a million once. Half a
// nano-dollar is rounded up. The package uses no floating point numbers.
package prices
