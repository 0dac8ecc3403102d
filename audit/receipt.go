package audit

import "github.com/ai-identity/ai-identity/audit/evidence"

// Record is an entry with its writer's numbers.
type Record struct {
	Seq   uint64 // the writer's number: from 1, ascending over all of its orgs
	Prev  uint64 // the writer's previous durable number in the same org; 0: this is the first
	Org   string
	Entry []byte // the exact bytes that were made durable
}

// Receipt identifies an entry.
type Receipt = evidence.Receipt

// ParseReceipt parses a receipt.
func ParseReceipt(s string) (Receipt, error) { return evidence.ParseReceipt(s) }

// Sign signs the receipt of an entry of org with the key of this process. writer.started has
// its public half. A signature takes about 25 µs, so only receipts that a caller gets are
// signed.
func (w *Writer) Sign(org string, r Receipt) Receipt {
	return evidence.SignReceipt(r, org, w.receiptKey)
}

// LeafHash returns the hash of an entry's bytes, which receipts and links have.
func LeafHash(entry []byte) [32]byte { return evidence.EntryHash(entry) }

func validID(s string) bool { return evidence.ValidID(s) }
