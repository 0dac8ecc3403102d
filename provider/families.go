package provider

import (
	"slices"
	"strings"
)

// families are the tools that providers run, by what they do. A tool belongs to a family if
// its name is one of these, with or without "_" and a version after it.
var families = []struct {
	name    string
	members []string
}{
	{"web_search", []string{"web_search", "google_search", "google_maps", "enterprise_web_search", "search_parameters", "browser_search", "x_search", "brave_search"}},
	{"web_fetch", []string{"web_fetch", "url_context", "visit_website", "browser"}},
	{"code_execution", []string{"code_execution", "code_interpreter", "executable_code", "bash_code_execution", "text_editor_code_execution"}},
	{"shell", []string{"shell", "local_shell", "bash"}},
	{"computer_use", []string{"computer_use", "computer", "browser_automation"}},
	{"file_search", []string{"file_search", "document_library", "collections_search", "retrieval"}},
	{"image_generation", []string{"image_generation", "image_gen"}},
}

// ToolFamilies returns the families of tools, sorted and without duplicates. other reports
// whether a tool has no family. Only names count: a function with the name of a provider's
// tool counts as that tool. So the families can be derived again from an audit entry.
func ToolFamilies(tools []string) (families []string, other bool) {
	for _, tool := range tools {
		switch f := family(tool); {
		case f == "":
			other = true
		case !slices.Contains(families, f):
			families = append(families, f)
		}
	}
	slices.Sort(families)
	return families, other
}

// family is "" for a tool without a family. Prefixes of gateways ("openrouter:web_search"),
// the marks between words and the case of letters are ignored.
func family(tool string) string {
	if strings.HasPrefix(tool, "mcp:") {
		return ""
	}
	name := tool[strings.LastIndexAny(tool, ":/")+1:]
	name = strings.ToLower(strings.NewReplacer("-", "_", ".", "_", " ", "_").Replace(snake(name)))
	longest, found := 0, ""
	for _, f := range families {
		for _, member := range f.members {
			if rest, ok := strings.CutPrefix(name, member); ok && (rest == "" || rest[0] == '_') && len(member) > longest {
				longest, found = len(member), f.name
			}
		}
	}
	return found
}

// canonicalType reports whether s is the type of a tool or an item in the one spelling that
// every server accepts.
func canonicalType(s []byte) bool {
	for _, c := range s {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '_', c == '-', c == '.', c == ':', c == '/':
		default:
			return false
		}
	}
	return true
}
