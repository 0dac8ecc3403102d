package api

import "github.com/ai-identity/ai-identity/identity"

// Row is a row of the table for tests.
type Row struct {
	Method, Path, Example string
	Roles                 []identity.Role
	Public, Unbuilt       bool
}

// Table returns the rows.
func Table() (out []Row) {
	for _, r := range routes() {
		out = append(out, Row{r.Method, r.Path, r.Example, r.Roles, r.Public, r.Unbuilt != ""})
	}
	return out
}
