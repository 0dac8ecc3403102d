package extproc_test

import (
	"time"

	"github.com/ai-identity/ai-identity/audit"
)

// encode is the entry's bytes as a writer would store them.
func encode(e audit.Entry, org, writer string) []byte {
	return audit.Stamp(e, org, writer, time.Time{}).Encode()
}
