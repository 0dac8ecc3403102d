package migrations_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"testing"
)

// Migrations are numbered from 1 without a gap. Two branches that add the same number
// would leave it to the order of file names which of them a database runs.
func TestNumbers(t *testing.T) {
	files, err := filepath.Glob("*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d migrations, %v", len(files), err)
	}
	form := regexp.MustCompile(`^[0-9]{5}_[a-z_]+\.sql$`)
	for i, name := range files { // sorted
		if want := fmt.Sprintf("%05d_", i+1); !form.MatchString(name) || name[:len(want)] != want {
			t.Errorf("%s is at the place of %sNAME.sql", name, want)
		}
	}
}
