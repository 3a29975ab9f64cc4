// SPDX-License-Identifier: MIT
// MSRs for user space: KVM_{GET,SET}_MSRS on a vCPU and on the system, and the lists of them.
#include "cpu/system.h"
#include "kvm/guest_fpu.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>

#define MAX_ENTRIES 256

static bool transfer(struct vcpu *vcpu, struct kvm_msr_entry *entry, bool write)
{
	u64 value = entry->data;
	int error;

	if (vcpu && vcpu->hidden_cet &&
	    (write ? hidden_cet_write(vcpu, entry->index, value) : hidden_cet_read(vcpu, entry->index, &value))) {
		entry->data = value;
		return true;
	}
	// State that XSAVE manages may be in memory.
	if (vcpu && guest_fpu_holds_msr(entry->index))
		guest_fpu_load(vcpu);
	if (!vcpu)
		error = cpu_feature_msr(entry->index, &value);
	else if (write)
		error = cpu_wrmsr(vcpu->cpu, entry->index, value, BY_HOST);
	else
		error = cpu_rdmsr(vcpu->cpu, entry->index, &value, BY_HOST);
	entry->data = value;
	return !error;
}

long msrs_ioctl(struct vcpu *vcpu, void *client, bool write)
{
	struct kvm_msrs header;
	struct kvm_msr_entry *entries;
	void *array = client_at(client, sizeof(header));
	size_t size;
	long result = copy_from_client(&header, client, sizeof(header));
	u32 done = 0;

	if (result)
		return result;
	if (header.nmsrs >= MAX_ENTRIES)
		return -E2BIG;
	size = header.nmsrs * sizeof(*entries);
	entries = malloc(size + 1);
	if (!entries)
		return -ENOMEM;
	result = copy_from_client(entries, array, size);
	if (!result) {
		while (done < header.nmsrs && transfer(vcpu, &entries[done], write))
			done++;
		if (!write)
			result = copy_to_client(array, entries, size);
	}
	free(entries);
	return result ? result : done;
}

int msr_list_ioctl(void *client, bool features)
{
	u32 list[512], count, room;
	int result = copy_from_client(&room, client, sizeof(room));

	if (result)
		return result;
	count = features ? cpu_feature_msr_list(list, 512) : msr_index_list(list, 512);
	result = copy_to_client(client, &count, sizeof(count));
	if (result)
		return result;
	if (room < count)
		return -E2BIG;
	return copy_to_client(client_at(client, sizeof(struct kvm_msr_list)), list, count * sizeof(list[0]));
}
