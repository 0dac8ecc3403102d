// Package prices knows what models cost, and says what an exchange did.
//
//	Load   the built-in list, an override file → Table
//	Cost   Table, provider, models' names, usage, time → nano-dollars, or: not known
//
// The built-in list (list.json) is data of the package genai-prices, brought into
// our form by tools/prices.py. It holds for a provider whose kind and base URL are
// those of the vendor's own API, and for no other: what speaks like OpenAI and has
// a model called gpt-4o need not charge what OpenAI does. An override file says
// what everything else costs, and comes first.
//
// # Not known is not 0
//
// Cost answers false rather than guess: for a model or a way of processing that the
// list does not have, for tokens of a sort that the model has no rate for, and for
// figures that contradict each other.
//
// # Arithmetic
//
// A rate is a whole number of nano-dollars per million tokens, so that every
// published price is exact. Tokens times rates are added up in 128 bits and divided
// by a million once, half a nano-dollar rounded up. Nothing here is a floating
// point number.
package prices
