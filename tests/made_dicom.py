"""Make DICOM files for tests. The contents of a file are written in the test."""

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

CR = "1.2.840.10008.5.1.4.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SR = "1.2.840.10008.5.1.4.1.1.88.11"
PRESENTATION = "1.2.840.10008.5.1.4.1.1.11.1"
DIRECTORY = "1.2.840.10008.1.3.10"


def item(**tags):
    made = Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def dataset(pixels=None, syntax=ExplicitVRLittleEndian, **tags):
    """A data set with grey pixels (rows, columns) or colour (rows, columns, 3), and further tags.

    A tag that is None is left out.
    """
    uid = tags.get("SOPInstanceUID") or generate_uid()
    told = {"SOPClassUID": CR, "Modality": "CR", "SOPInstanceUID": uid, "PatientID": "p"}
    told |= {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    if pixels is not None:
        pixels, kind = np.asarray(pixels), "MONOCHROME2"
        samples = 3 if pixels.ndim > 2 and pixels.shape[-1] == 3 else 1
        bits = 8 * pixels.dtype.itemsize
        shape = pixels.shape[:-1] if samples == 3 else pixels.shape
        told |= {"Rows": shape[-2], "Columns": shape[-1], "SamplesPerPixel": samples}
        told |= {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
        told |= {"PixelRepresentation": int(pixels.dtype.kind == "i")}
        told |= (
            {"PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
            if samples == 3
            else {"PhotometricInterpretation": kind}
        )
        if len(shape) > 2:
            told["NumberOfFrames"] = shape[0]
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID") or CR
    meta.MediaStorageSOPInstanceUID = uid
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in (told | tags).items():
        if value is not None:
            setattr(made, name, value)
    if pixels is not None:
        made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        made["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return made


def content(pixels=None, **tags):
    """The bytes of a DICOM file, from a data set or from the arguments of :func:`dataset`."""
    buffer = pydicom.filebase.DicomBytesIO()
    made = pixels if isinstance(pixels, Dataset) else dataset(pixels, **tags)
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write(path, pixels=None, **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(pixels, **tags))
    return path


AXIAL = [1, 0, 0, 0, 1, 0]


def write_series(folder, voxels, spacing=(0.5, 2, 3), origin=(0, 0, 0), direction=AXIAL, **tags):
    """Write voxels X×Y×Z, a file for each slice. The names do not show the order of the slices.

    ``spacing`` is in mm, along x, y and z. ``direction`` has the directions of x and of y in
    DICOM's axes.
    """
    told = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()}
    told |= {"SOPClassUID": MR, "Modality": "MR", "ImageOrientationPatient": list(direction)}
    told |= {"PixelSpacing": [spacing[1], spacing[0]]} | tags
    normal = np.cross(direction[:3], direction[3:])
    count = voxels.shape[2]
    for z in range(count):
        position = (np.array(origin) + z * spacing[2] * normal).tolist()
        name = f"{(7 * z + 3) % count:03d}" if count % 7 else f"{count - z:03d}"
        pixels = np.ascontiguousarray(voxels[:, :, z].T)
        write(folder / name, pixels, ImagePositionPatient=position, **told)
    return folder
