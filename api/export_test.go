package api

import "github.com/ai-identity/ai-identity/identity"

// Row is a row of the table as tests see it.
type Row struct {
	Method, Path, Example string
	Roles                 []identity.Role
	Public, Unbuilt       bool
}

// Table is what is served.
func Table() (out []Row) {
	for _, r := range routes() {
		out = append(out, Row{r.Method, r.Path, r.Example, r.Roles, r.Public, r.Unbuilt != ""})
	}
	return out
}
